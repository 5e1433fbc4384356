"""Distillation from the conventional model, with the stock Trainer: a callback adds a term to the student's loss."""

import contextlib
import functools
import inspect
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainerCallback

TINY = torch.finfo(torch.float32).tiny


class DistillationCallback(TrainerCallback):
    """Teaches a student the logits and hidden states of a fine-tuned teacher while the stock `Trainer` trains it.

    While training, the loss becomes `task_weight · task loss + logits_weight · KL(teacher ‖ student) + hidden_weight · mean over layers
    of ‖h_student − h_teacher‖² / ‖h_teacher‖²`, padding excluded. Teacher and student read the same batch, masked tokens
    included. The hooks that do it are taken off the student when training ends, and do nothing where it failed; nothing of
    the teacher is saved. Gradient accumulation gives the gradient of one larger batch, but for the squared norms of the
    hidden states, whose ratio is that of every small batch.

    Args:
        teacher: a classifier with the student's labels, on the student's device; put into evaluation mode.
        logits_weight: weight of the Kullback-Leibler divergence; 0 leaves it out.
        task_weight: weight of the task loss; 0 learns from the teacher alone, for which no labels are needed.
        skip_token_id: texts that hold this token are learnt without the teacher: the mask token, where masked texts are
            strange to the teacher. Its terms are those of the other texts, times their share of the batch.
        hidden_weight: weight of the distance of hidden states; 0 leaves it out, which permits any teacher with the same
            vocabulary; otherwise teacher and student must have the same number and size of layers.

    Raises:
        ValueError: a negative weight; when training begins: teacher and student do not fit each other, or the `Trainer`
            would compute the loss itself; in the first step: a task loss is wanted, but there are no labels.

    Example:
        >>> student = from_pretrained_bcos("runs/conventional", task="sequence-classification")
        >>> Trainer(student, args, train_dataset=data, callbacks=[DistillationCallback(teacher)]).train()
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        logits_weight: float = 1.0,
        hidden_weight: float = 1.0,
        task_weight: float = 1.0,
        skip_token_id: int | None = None,
    ) -> None:
        weights = {"logits_weight": logits_weight, "hidden_weight": hidden_weight, "task_weight": task_weight}
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value!r}.")
        self.teacher, self.task_weight = teacher, task_weight
        self.logits_weight, self.hidden_weight = logits_weight, hidden_weight
        self.skip_token_id = skip_token_id
        self._handles: list[Any] = []
        self._autocast: Any = contextlib.nullcontext
        self._accumulation_steps = 1
        self._awaits_batch = self._teaches = False

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.on_train_end(args, state, control)  # of a training that failed
        check_teacher(model, self.teacher, self.hidden_weight > 0)
        if args.n_gpu > 1:
            raise ValueError("Several GPUs in one process cannot share a teacher: start with `accelerate launch`.")
        if args.label_smoothing_factor:
            raise ValueError(
                f"With label_smoothing_factor={args.label_smoothing_factor} the Trainer computes the loss itself, without "
                "the teacher. Set it to 0."
            )
        self.teacher.eval()
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self._autocast = (
            contextlib.nullcontext if dtype is None else functools.partial(torch.autocast, args.device.type, dtype)
        )
        self._accumulation_steps = args.gradient_accumulation_steps
        self._handles = [
            model.register_forward_pre_hook(self._ask_for_hidden_states, with_kwargs=True),
            model.register_forward_hook(self._add_loss, with_kwargs=True),
        ]

    def on_step_begin(self, args, state, control, **kwargs):
        self._awaits_batch = True

    def on_substep_end(self, args, state, control, **kwargs):
        self._awaits_batch = True

    def on_train_end(self, args, state, control, **kwargs):
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._awaits_batch = False

    def _ask_for_hidden_states(self, module, args, kwargs):
        # A training that fails ends without an event and leaves the hooks, so they work once per batch of the Trainer's.
        self._teaches = self._awaits_batch and module.training
        if not self._teaches:
            return None
        self._awaits_batch = False
        hidden = {"output_hidden_states": True} if self.hidden_weight else {}
        return args, {**kwargs, **hidden, "return_dict": True}

    def _add_loss(self, module, args, kwargs, output):
        if not self._teaches:
            return output
        self._teaches = False
        labels, count = kwargs.get("labels"), kwargs.get("num_items_in_batch")
        if (self.task_weight and output.get("loss") is None) or (labels is None and count is not None):
            raise ValueError(
                "The student got no labels: either the data has none (then set task_weight=0), or the Trainer computes "
                "the loss itself, without the teacher (then leave out `compute_loss_func`)."
            )
        added = self._teachers_terms(kwargs, output)
        output["hidden_states"] = None
        if count is not None:  # the task loss is divided by all labels of the step, of which this batch holds some
            share = (labels != -100).sum() / count
            added = added * share.nan_to_num(nan=1 / self._accumulation_steps)  # where no text has a label
        output["loss"] = self.task_weight * output["loss"] + added if self.task_weight else added
        return output

    def _teachers_terms(self, inputs, output):
        logits, states, share = output.logits, output.get("hidden_states"), 1.0
        if self.skip_token_id is not None:
            taught = ~(inputs["input_ids"] == self.skip_token_id).any(-1)
            share = taught.double().mean().item()
            if not share:
                return 0.0 * logits.sum()
            rows = len(taught)
            inputs = {
                name: value[taught] if torch.is_tensor(value) and value.dim() and len(value) == rows else value
                for name, value in inputs.items()
            }
            logits, states = logits[taught], states and tuple(state[taught] for state in states)
        mask = inputs.get("attention_mask")
        teacher = self._ask_teacher(inputs)
        added = self.logits_weight * divergence(logits, teacher.logits, mask)
        if self.hidden_weight:
            added = added + self.hidden_weight * hidden_distance(states, teacher.hidden_states, mask)
        return share * added

    def _ask_teacher(self, inputs):
        base = self.teacher.get_base_model() if hasattr(self.teacher, "get_base_model") else self.teacher
        accepted = inspect.signature(base.forward).parameters.keys() - {"labels", "num_items_in_batch"}
        inputs = {name: value for name, value in inputs.items() if name in accepted}
        with torch.no_grad(), self._autocast():
            return self.teacher(**{**inputs, "output_hidden_states": self.hidden_weight > 0, "return_dict": True})


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel, hidden: bool) -> None:
    """Refuses a teacher that cannot teach `student`.

    Raises:
        ValueError: other labels, another vocabulary, or (with `hidden`) layers of another number or size.
    """
    hints = {
        "num_labels": "It must be fine-tuned on the student's labels.",
        "vocab_size": "Both must read the same tokens.",
    }
    if hidden:
        hints |= dict.fromkeys(("num_hidden_layers", "hidden_size"), "Set hidden_weight=0 to teach the logits alone.")
    for name, hint in hints.items():
        mine, other = getattr(student.config, name, None), getattr(teacher.config, name, None)
        if mine != other:
            raise ValueError(f"The teacher has {name}={other}, the student {mine}. {hint}")
    names = [
        [str(label) for _, label in sorted(config.id2label.items())] for config in (student.config, teacher.config)
    ]
    named = all(not label.startswith("LABEL_") for labels in names for label in labels)
    if named and names[0] != names[1]:
        raise ValueError(
            f"The teacher's labels are {', '.join(names[1])}, the student's {', '.join(names[0])}: they must be the same "
            "in the same order."
        )


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """KL(teacher ‖ student) of the softmax over the last dimension, averaged over the others; a scalar.

    One output is a regression: there it is the mean squared distance.

    Args:
        student: logits, `(batch, labels)` or `(batch, tokens, labels)`.
        teacher: the same of the teacher.
        attention_mask: `(batch, tokens)`; leaves padding out where there are logits of tokens. None is all real.
    """
    student, teacher = _wide(student), _wide(teacher)
    if student.dim() == 3 and attention_mask is not None:
        student, teacher = student[attention_mask != 0], teacher[attention_mask != 0]
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    student, teacher = student.log_softmax(-1).flatten(0, -2), teacher.log_softmax(-1).flatten(0, -2)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def hidden_distance(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Mean over layers of the squared distance of hidden states, divided by the teacher's mean square; a scalar.

    Args:
        student: hidden states of embeddings and layers, each `(batch, tokens, hidden)`.
        teacher: the same of the teacher.
        attention_mask: `(batch, tokens)`; padding is left out. None is all real.
    """
    keep = torch.ones(student[0].shape[:2], device=student[0].device) if attention_mask is None else attention_mask
    keep = keep[..., None] != 0
    distances = [
        # A batch of which every token is hidden by the attention mask has no distance.
        ((_wide(mine) - _wide(other)).square() * keep).sum() / (_wide(other).square() * keep).sum().clamp_min(TINY)
        for mine, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(distances).mean()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
