"""The command line, given a model with prototypes."""

import json
import re
from pathlib import Path

import pytest

from bcos_transformers import ProtoExplainer, load_bcos_model, load_explanations
from bcos_transformers.cli.output import printable
from bcos_transformers.modeling.bcos_conversion import assert_dynamic_linear
from bcos_transformers.prototypes import PrototypeExplanation
from command_line import cli, csv_file, saved
from conftest import bcos_model, make_tokenizer
from proto_toys import BINS, NAMES, TEXTS, project, proto_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TEXT = "a very good film , not dull !"


def usage(*arguments: object) -> str:
    """What wrong usage says, without its box."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", cli(*arguments, code=2).stderr).split())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Projected, over a B-cos encoder, with shares that split over words."""
    proto = proto_model(id2label=NAMES, distance="cosine").float()
    project(proto, make_tokenizer())
    return saved(tmp_path_factory.mktemp("proto"), proto)


@pytest.fixture(scope="module")
def unprojected(tmp_path_factory) -> Path:
    """Over a conventional encoder."""
    return saved(tmp_path_factory.mktemp("l2"), proto_model(conventional=True, id2label=NAMES))


def explained(model: Path, texts: str | list[str], top_k: int = 5, **options):
    return ProtoExplainer(load_bcos_model(model), make_tokenizer(), top_k=top_k)(texts, **options)


def test_explain_shows_texts_that_it_looks_like_and_the_sum(model):
    shown = cli("explain", model, TEXT).stdout
    expected = explained(model, TEXT)
    assert shown.startswith(expected.label)
    assert f"logit {expected.logit:+.4f}" in shown
    places = [shown.index(f": {share.text}\n") for share in expected.prototypes]
    assert len(places) == 5
    assert places == sorted(places)
    assert "\x1b" not in shown
    shown = cli("explain", model, TEXT, "--top", 2).stdout
    assert sum(f": {text}\n" in shown for text in TEXTS) == 2
    assert "4 others" in shown


def test_explain_json_is_what_python_gives(model):
    one, two = json.loads(cli("explain", model, TEXT, "soup", "--json", "--top", 3).stdout)
    expected = explained(model, [TEXT, "soup"], top_k=3)
    assert PrototypeExplanation.from_dict(one) == expected[0]
    assert [two["text"], len(two["prototypes"])] == ["soup", 3]
    lines = cli("explain", model, TEXT, "soup", "--format", "jsonl", "--top", 3).stdout.splitlines()
    assert [PrototypeExplanation.from_json(line) for line in lines] == expected
    small = cli("explain", model, TEXT, "soup", "--json", "--top", 3, "--batch-size", 1).stdout
    assert json.loads(small)[1]["logit"] == pytest.approx(two["logit"], abs=1e-5)


def test_explain_target_and_contrast(model):
    def one(*options):
        return json.loads(cli("explain", model, TEXT, "--json", *options).stdout)[0]

    assert one("--target", "2")["label"] == one("--target", "so so")["label"] == "so so"
    against = one("--target", "good", "--contrast", "bad")
    assert against["contrast"] == "bad"
    logits = [one("--target", name)["logit"] for name in ("good", "bad")]
    assert against["logit"] == pytest.approx(logits[0] - logits[1], abs=1e-5)
    assert one("--contrast", "mean")["contrast"] == "mean"
    said = cli("explain", model, TEXT, "--target", "nothing", code=1).stderr
    assert "'nothing' is not a label of this model: " in said


def test_explain_as_a_table(model):
    table = cli("explain", model, TEXT, "--format", "table", "--top", 3).stdout
    expected = explained(model, TEXT, top_k=3)
    for share in expected.prototypes:
        (row,) = (line for line in table.splitlines() if line.strip().startswith(share.text))
        assert re.findall(r"[+-]?\d+\.\d{4}", row) == [
            f"{share.similarity:.4f}",
            f"{share.weight:+.4f}",
            f"{share.contribution:+.4f}",
        ]
    below = {
        name: float(n) for name, n in re.findall(r"^ (3 others|bias|logit) +([+-]\d+\.\d{4})", table, re.MULTILINE)
    }
    assert below["logit"] == pytest.approx(expected.logit, abs=1e-4)
    shares = sum(share.contribution for share in expected.prototypes)
    assert shares + below["3 others"] + below["bias"] == pytest.approx(below["logit"], abs=2e-4)


def test_explain_reads_files_and_standard_input_and_cuts_aloud(model, tmp_path):
    (tmp_path / "texts.txt").write_text("a good film\n\nthe soup\n")
    for source in (("--file", tmp_path / "texts.txt"), ("-",), ()):
        result = cli("explain", model, *source, "--json", stdin="a good film\n\nthe soup\n")
        assert [row["text"] for row in json.loads(result.stdout)] == ["a good film", "the soup"]
    table = csv_file(tmp_path)
    assert [row["text"] for row in json.loads(cli("explain", model, "--file", table, "--json").stdout)] == ["a film"]
    result = cli("explain", model, "film " * 20, "--max-length", 9)
    assert "1 of 1 texts have more than 9 tokens and were cut." in result.stderr
    assert "[the text was cut]" in result.stdout
    result = cli("explain", model, "--json", stdin="")
    assert json.loads(result.stdout) == []
    assert "There is nothing to explain" in result.stderr
    assert "'nothing' is not a label" in cli("explain", model, "--target", "nothing", stdin="", code=1).stderr
    assert "has no words to compare with prototypes" in cli("explain", model, "  ", code=1).stderr


def test_explain_writes_files(model, tmp_path):
    expected = explained(model, [TEXT, "soup"], top_k=2)
    for name in ("e.html", "e.json", "e.jsonl", "e.parquet"):
        result = cli("explain", model, TEXT, "soup", "--top", 2, "--output", tmp_path / name, "--json")
        facts = {"output": str(tmp_path / name), "texts": 2, "explanations": 2, "truncated": 0}
        assert json.loads(result.stdout) == facts
    assert load_explanations(tmp_path / "e.jsonl") == load_explanations(tmp_path / "e.parquet") == expected
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [PrototypeExplanation.from_dict(row) for row in rows] == expected
    page = (tmp_path / "e.html").read_text()
    assert all(share.text in page for share in expected[0].prototypes)
    shown = cli("explain", model, TEXT, "soup", "--top", 2, "--format", "html").stdout
    assert shown.count("looks like") == page.count("looks like") > 0


def test_options_that_mean_nothing_say_so(model, tmp_path):
    table = csv_file(tmp_path)
    for given, options, sentence in [
        (
            [TEXT],
            ["--pair", "soup"],
            "--pair is not for a model with prototypes, which are single texts: leave it out",
        ),
        ([], ["--file", table, "--pair-column", "label"], "--pair-column is not for a model with prototypes"),
        ([TEXT], ["--stride", 4], "--max-length says where longer texts are cut."),
        ([TEXT], ["--granularity", "token"], "--granularity token is not for a model with prototypes"),
        ([TEXT], ["--target", "all"], "run the command once for each class"),
        ([TEXT], ["--target", "good", "--target", "bad"], "run the command once for each class"),
    ]:
        assert sentence in usage("explain", model, *given, *options), options
    cli("explain", model, TEXT, "--granularity", "word")
    assert "--against is for B-cos models" in usage("info", model, "--against", model)
    bcos = saved(tmp_path / "bcos", bcos_model(id2label=NAMES))
    assert "--top is for terminal, table and json" in usage("explain", bcos, TEXT, "--top", 2, "--format", "html")


def test_unprojected_prototypes_and_shares_that_do_not_split(unprojected):
    result = cli("explain", unprojected, TEXT, "--top", 1)
    assert "not projected onto training texts yet" in result.stderr
    number = explained(unprojected, TEXT).prototypes[0].number
    assert f"prototype {number} (not projected onto a text)" in result.stdout
    (row,) = json.loads(cli("explain", unprojected, TEXT, "--json").stdout)
    assert row["scores"] is None


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    hostile = "film\x1b[2J\x9b2J\x07 \u202esoup [bold]x[/bold]"
    proto = proto_model(id2label=NAMES, distance="cosine").float()
    project(proto, make_tokenizer())
    proto.config.prototypes = [{**row, "text": hostile, "label": "\x1b[31mno"} for row in proto.config.prototypes]
    path = saved(tmp_path / "hostile", proto)
    for form in ("terminal", "table", "json", "jsonl"):
        shown = cli("explain", path, hostile, "--format", form).stdout
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", shown), form
        assert "[bold]" in shown, form
    assert printable(hostile) in cli("explain", path, "soup").stdout


def test_info_of_prototypes(model, unprojected, tmp_path):
    facts = json.loads(cli("info", model, "--json").stdout)
    wanted = {
        **{"class": "ProtoForSequenceClassification", "task": "sequence-classification", "encoder": "BcosBertModel"},
        **{"encoder_type": "bcos-bert", "prototypes": 6, "prototypes_by_class": {"bad": 2, "good": 2, "so so": 2}},
        **{"distance": "cosine", "projected": True, "shares_split_over_words": True, "dynamic_linear": True},
    }
    assert {name: facts[name] for name in wanted} == wanted
    assert facts["parameters"] == sum(p.numel() for p in load_bcos_model(model).parameters())
    shown = " ".join(cli("info", model).stdout.split())
    assert "prototypes 6, 2 for each of: bad, good, so so distance cosine projected yes, each" in shown
    assert "shares split over words yes" in shown
    facts = json.loads(cli("info", unprojected, "--json").stdout)
    assert [facts[name] for name in ("projected", "shares_split_over_words", "dynamic_linear", "b")] == [
        *(False, False, None, None)
    ]
    shown = " ".join(cli("info", unprojected).stdout.split())
    assert "BertModel, 16 wide (conventional)" in shown
    assert "projected no; " in shown
    assert "shares split over words no; that needs a B-cos encoder" in shown
    assert "dynamic linear" not in shown
    regression = saved(tmp_path / "regression", proto_model(**BINS))
    assert json.loads(cli("info", regression, "--json").stdout)["prototypes_by_class"] == {"-1": 2, "0.1": 2, "1.5": 2}
    assert "2 for each bin of values around: -1, 0.1, 1.5" in cli("info", regression).stdout


def test_info_checks_a_bcos_encoder(model, monkeypatch):
    def fault(encoder):
        assert_dynamic_linear(encoder)
        raise ValueError(f"{type(encoder).__name__} is not dynamic linear.")

    monkeypatch.setattr("bcos_transformers.cli.info.assert_dynamic_linear", fault)
    said = " ".join(cli("info", model, code=1).stdout.split())
    assert "encoder dynamic linear NO: BcosBertModel is not dynamic linear." in said


def test_commands_for_other_models_say_what_to_do(model, tmp_path):
    rows = csv_file(tmp_path, "text,label\n" + "a film,good\nsoup,bad\n" * 10)
    said = cli("evaluate", model, "--file", rows, code=1).stderr
    assert (
        f"is a model with prototypes (proto-lm), and this command is for B-cos models: `bcos-transformers explain {model}"
        in said
    )
    said = cli("convert", model, tmp_path / "out", code=1).stderr
    assert "is a model with prototypes (proto-lm). Conventional models are converted" in said
    said = cli("finetune", model, "--train-file", rows, "--output", tmp_path / "out", code=1).stderr
    assert "is a model with prototypes (proto-lm). This command makes B-cos classifiers" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_push_and_explain_from_the_hub(hub, model):
    said = cli("push", model, "tester/proto-by-hand", "--example", TEXT, "--json").stdout
    files = hub.files("tester/proto-by-hand")
    assert json.loads(said)["revision"] == hub.history("tester/proto-by-hand")[0].sha
    assert [json.loads(line)["text"] for line in files["prototypes.jsonl"].decode().splitlines()] == TEXTS
    assert {"model.safetensors", "modeling_proto.py", "README.md"} <= files.keys()
    (row,) = json.loads(cli("explain", "tester/proto-by-hand", TEXT, "--json").stdout)
    assert PrototypeExplanation.from_dict(row) == explained(model, TEXT)
