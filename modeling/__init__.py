"""The modelling code that travels to the Hub with every saved model; flat, and importing only transformers and torch."""
