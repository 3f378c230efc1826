"""Kinds of models: how each reads a row and writes its answer, is padded, trained, scored and generates.

A family is chosen once, from the model's config, and held by all who need one: the tokeniser of the cache, the Trainer,
the gradients. Nothing else asks what kind a model is of.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.models.auto import modeling_auto

from src.cli import InputError
from src.files import read_text
from src.identity import short_hash

IGNORED = -100  # label of a position that is no target
# What chat templates are told that ask for the date: results must not depend on it.
TODAY = "26 Jul 2024"
DATED = f"{{%- macro strftime_now(form) -%}}{TODAY}{{%- endmacro -%}}{{{{ '' }}}}"
# Pairs of (what the user says, what the assistant answers) by which a chat template is looked at.
PROBES = (("Some 'user'\n\nasks {1}", "An \"answer\" <b>"), ("Another one!", "7"))


@dataclass(frozen=True)
class Frame:
    """What stands around the texts of a row: a model reads `before` input `between` and writes `lead` target `closing`.

    `own`: whether the tokenizer adds the special tokens that it puts at the beginning of a text.
    """

    before: str = ""
    between: str = ""
    lead: str = ""
    closing: str = ""
    own: bool = True


class Family:
    """What all kinds share, and what each has to give: see the methods that are not implemented here.

    Args:
        config: the model's; its class decides the family.
        generation: the model folder's settings of generation, of which the end tokens are taken.
        frame: what stands around the texts.
    """

    auto: type  # of transformers: loads such models
    task_type: str  # PEFT's name of the kind

    def __init__(self, config, tokenizer, generation: GenerationConfig, frame: Frame):
        self.config, self.tokenizer, self.frame = config, tokenizer, frame
        self.ends, self._special = _ends(tokenizer, generation), set(tokenizer.all_special_ids)
        self.filler = self.ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Where a text is cut, its last tokens stay: what stands between input and target, and what ends them.
        self.end_of_prompt, self.end_of_target = self._end_of_prompt(), len(self.targets(["a"])[0]) - len(
            self.targets(["a"], closed=False)[0])
        self.prompt_overhead = len(self.prompts(["a"])[0]) - 1  # tokens of a prompt around the row's own text

    @property
    def key(self) -> list:
        """What the family adds to the texts, for names of what was made with it."""
        return [type(self).__name__, *vars(self.frame).values()]

    @functools.cached_property
    def tokenizer_hash(self) -> str:
        """Of all that decides how the tokenizer divides a text."""
        backend, name = getattr(self.tokenizer, "backend_tokenizer", None), type(self.tokenizer).__name__
        return short_hash([name, backend.to_str() if backend else [
            sorted(self.tokenizer.get_vocab().items()), repr(self.tokenizer.init_kwargs)]], 16)

    # ---- texts to ids ----------------------------------------------------------------------------------------------

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of what the model reads for each input."""
        raise NotImplementedError

    def targets(self, texts: Sequence[str], closed: bool = True) -> list[list[int]]:
        """Token ids of what the model should write for each target, with the tokens that end it or without."""
        raise NotImplementedError

    def _end_of_prompt(self) -> int:
        raise NotImplementedError

    # ---- ids to texts ----------------------------------------------------------------------------------------------

    def is_unwritable(self, ids: Sequence[int]) -> bool:
        """Whether a special token, the unknown one among them, stands inside a target: decoded, it will be missing."""
        unknown = {self.tokenizer.unk_token_id} - set(self.ends)
        text = [i for i, token in enumerate(ids) if token not in self._special or token in unknown]
        return bool(text) and any(token in self._special for token in ids[text[0]:text[-1] + 1])

    def written(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[str]:
        """Each text as a model that generates its `ids` would write it; what it cannot write stays as it is."""
        decoded = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text if self.is_unwritable(of_text) else written.strip()
                for text, of_text, written in zip(texts, ids, decoded, strict=True)]

    def as_generated(self, references: Sequence[Sequence[str]]) -> list[list[str]]:
        """Accepted answers after the way through the tokenizer that a prediction has gone, too."""
        flat = list(dict.fromkeys(text for of_row in references for text in of_row))
        written = dict(zip(flat, self.written(flat, self.targets(flat)), strict=True))
        return [list(dict.fromkeys(written[text] or text for text in of_row)) for of_row in references]

    # ---- ids to tensors --------------------------------------------------------------------------------------------

    def collate(self, model, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
                widths: Sequence[int]) -> dict:
        """The inputs of a model, and `labels` (b, widths[1]), IGNORED where there is no target.

        Args:
            prompts, targets: token ids, a row each.
            widths: (prompt, target) tokens to pad to.
        """
        raise NotImplementedError

    def for_vmap(self, batch: dict) -> dict:
        """A collated batch whose attention mask is a term to add, (b, 1, queries, keys): what `vmap` can follow."""
        raise NotImplementedError

    def with_targets(self, model, batch: dict, labels: torch.Tensor) -> dict:
        """The batch with other targets, (b, t)."""
        raise NotImplementedError

    # ---- tensors to results ----------------------------------------------------------------------------------------

    def read(self, model, batch: dict) -> dict:
        """The batch after what loss and generation share, so that it is done once."""
        return batch

    def at_targets(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of the logits that a model gives, those that are for the targets, (b, t, vocabulary)."""
        return logits

    def target_logits(self, model, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (b, t, vocabulary) at the positions of the targets alone, and their labels (b, t)."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.at_targets(model(**inputs, use_cache=False).logits, batch["labels"]), batch["labels"]

    def loss(self, outputs, labels: torch.Tensor, num_items_in_batch=None, label_smoothing: float = 0.0):
        """Mean loss of a target token, over the batches of a step where `num_items_in_batch` counts their tokens, plus
        that of routers, if the config asks for it (scores are of tokens alone). Not the model's own: T5's knows no
        number of tokens, and would grow with the batches and processes of a step."""
        total = cross_entropy(self.at_targets(outputs.logits, labels).flatten(0, 1).float(), labels.flatten(),
                              ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / count + _loss_of_routers(self.config, outputs)

    def generate(self, model, batch: dict, **settings) -> torch.Tensor:
        """The new tokens alone, (b, at most max_new_tokens)."""
        raise NotImplementedError

    def place_virtual_tokens(self, model) -> None:
        """Make a model of PEFT's prompt or prefix tuning count positions rightly in padded batches."""

    @property
    def generation(self) -> dict:
        """Settings by which every generation ends and fills up."""
        return {"eos_token_id": self.ends, "pad_token_id": self.filler}

    # ---- limits ----------------------------------------------------------------------------------------------------

    def check_lengths(self, name: str, source: int, target: int, virtual: int) -> None:
        """Raise InputError where rows of so many tokens, and virtual ones before them, do not fit.

        Args:
            name: of the model, for the message.
            source, target: --max_source_length, and the larger of --max_target_length and --generation_max_length.
        """
        if source <= self.prompt_overhead:
            raise InputError(f"--max_source_length {source}: what stands around an input takes {self.prompt_overhead} "
                             "tokens, so at least one more")

    def check_gradients(self, name: str, longest: int) -> None:
        """Raise InputError where gradients of single examples of up to `longest` tokens cannot be taken rightly."""
        config = self.config
        layers = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        reason = None
        if any(getattr(config, words, None) for words in ("num_experts", "num_local_experts", "n_routed_experts")):
            reason = "it sends each token to a few experts"
        elif layers - {"full_attention", "sliding_attention"} or hasattr(config, "state_size"):
            reason = "some of its layers are recurrent"
        elif window and window < longest and (not layers or "sliding_attention" in layers):
            reason = f"some of its layers look back {window} tokens only, rows may have {longest}"
        if reason:
            raise InputError(f"--model_name_or_path '{name}': no estimate from gradients of a {config.model_type} "
                             f"model: {reason}")


class EncoderDecoder(Family):
    """T5, mT5, ByT5, UL2, BART, Pegasus, T5Gemma: an encoder reads the input, a decoder writes the target."""

    auto, task_type = AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"

    def prompts(self, texts):
        return self.tokenizer([self.frame.before + text for text in texts], verbose=False)["input_ids"]

    def targets(self, texts, closed=True):
        ids = self.tokenizer(text_target=list(texts), verbose=False)["input_ids"]
        if closed:
            return ids
        return [of_text[:-1] if of_text and of_text[-1] in self.ends else of_text for of_text in ids]

    def _end_of_prompt(self):
        return int(self.prompts(["a"])[0][-1] in self.tokenizer.all_special_ids)

    def collate(self, model, prompts, targets, widths):
        batch = self.tokenizer.pad({"input_ids": list(prompts)}, padding="max_length", max_length=widths[0],
                                   return_tensors="pt")
        return self.with_targets(model, dict(batch), padded(targets, widths[1], IGNORED))

    def with_targets(self, model, batch, labels):
        return batch | {"labels": labels,
                        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=labels)}

    def for_vmap(self, batch):
        return batch | {"attention_mask": _additive(batch["attention_mask"].bool()[:, None, None, :])}

    def read(self, model, batch):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            return batch  # PEFT puts its vectors before the encoder's input by itself
        source = {name: batch[name] for name in ("input_ids", "attention_mask")}
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        return rest | {"encoder_outputs": model.get_encoder()(**source)}

    def generate(self, model, batch, **settings):
        source = {name: batch[name] for name in ("input_ids", "encoder_outputs", "attention_mask") if name in batch}
        return model.generate(**source, **self.generation, **settings)[:, 1:]  # all begins with the start token

    def check_lengths(self, name, source, target, virtual):
        super().check_lengths(name, source, target, virtual)
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"--model_name_or_path '{name}': its tokenizer has no pad token, so rows cannot form a "
                             "batch; name one in its tokenizer_config.json")
        positions = getattr(self.config, "max_position_embeddings", None)  # none where positions are relative, as T5's
        for flag, length in (("max_source_length", source), ("max_target_length", target)):
            if positions is not None and length + virtual > positions:
                raise InputError(f"--{flag} {length}: {name} has {positions} positions, so at most "
                                 f"{positions - virtual}")


class DecoderOnly(Family):
    """GPT-2, GPT-Neo, OPT, Llama, Qwen, SmolLM, Gemma, Granite, ...: one text, of which the model writes the end.

    In a batch prompts are padded on the left and targets on the right, so that all targets stand at the same positions
    and only these go through the output layer. Masks and positions come from lengths: the pad token of many models is
    also the token that ends a target.
    """

    auto, task_type = AutoModelForCausalLM, "CAUSAL_LM"

    def __init__(self, config, tokenizer, generation, frame):
        model_class = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        self._takes = inspect.signature(model_class.forward).parameters
        self._context = tokenizer(frame.between, add_special_tokens=False)["input_ids"] if frame.between else []
        super().__init__(config, tokenizer, generation, frame)

    def prompts(self, texts):
        frame = self.frame
        ids = self._ids([frame.before + text + frame.between for text in texts], frame.own)
        return [of_text[:-1] if frame.own and of_text[-1] in self.ends else of_text for of_text in ids]

    def targets(self, texts, closed=True):
        # As the end of one text with what stands before it, where no token reaches over the border; else apart.
        frame = self.frame
        texts = [frame.lead + text + (frame.closing if closed else "") for text in texts]
        whole, apart = (self._ids([before + text for text in texts], False) for before in (frame.between, ""))
        n = len(self._context)
        ids = [one[n:] if one[:n] == self._context else other for one, other in zip(whole, apart, strict=True)]
        return [[*of_text, self.ends[0]] for of_text in ids] if closed and not frame.closing else ids

    def _ids(self, texts: list[str], own: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=own, verbose=False)["input_ids"]

    def _end_of_prompt(self):
        return len(self._context)

    def collate(self, model, prompts, targets, widths):
        ids = padded([prompt[::-1] for prompt in prompts], widths[0], self.filler).flip(1)
        given = torch.arange(widths[0]) >= torch.tensor([[widths[0] - len(prompt)] for prompt in prompts])
        return self._followed(ids, given.long(), padded(targets, widths[1], IGNORED))

    def with_targets(self, model, batch, labels):
        width = batch["input_ids"].shape[1] - batch["labels"].shape[1]
        return self._followed(batch["input_ids"][:, :width], batch["attention_mask"][:, :width], labels)

    def _followed(self, prompts: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict:
        given = labels != IGNORED
        mask = torch.cat([mask, given.long()], 1)
        batch = {"input_ids": torch.cat([prompts, labels.where(given, self.filler)], 1), "attention_mask": mask,
                 "labels": labels}
        if "position_ids" in self._takes:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in self._takes:
            batch["logits_to_keep"] = labels.shape[1] + 1
        return batch

    def for_vmap(self, batch):
        width = batch["input_ids"].shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=batch["input_ids"].device).tril()
        return batch | {"attention_mask": _additive(causal & batch["attention_mask"].bool()[:, None, None, :])}

    def at_targets(self, logits, labels):
        return logits[:, -labels.shape[1] - 1:-1]  # each position gives the token after it

    def generate(self, model, batch, **settings):
        width = batch["input_ids"].shape[1] - batch["labels"].shape[1]
        prompt = {name: batch[name][:, :width] for name in ("input_ids", "attention_mask")}
        return model.generate(**prompt, **self.generation, **settings)[:, width:]

    def place_virtual_tokens(self, model):
        # PEFT drops the positions, and its vectors stand before the padding: positions come from the mask here, too.
        base = model.get_base_model()
        if "position_ids" in self._takes:
            base.register_forward_pre_hook(_positions_by_mask, with_kwargs=True)

    def check_lengths(self, name, source, target, virtual):
        super().check_lengths(name, source, target, virtual)
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None and source + target + virtual > positions:
            raise InputError(f"--max_source_length {source} with targets of up to {target} tokens"
                             + (f" and {virtual} virtual ones" if virtual else "")
                             + f": {name} has {positions} positions for all of them")


def choose(name: str, config, tokenizer, generation: GenerationConfig, prefix: str, chat_template: str,
           system_prompt: str | None) -> Family:
    """The family of a model.

    Args:
        name: of the model, for messages.
        prefix: --source_prefix, put before every input.
        chat_template: auto, none, or a file with a template.
        system_prompt: what the system says to a chat model, "none" for an empty one; None for the template's own.

    Raises:
        InputError: it is no language model of a known kind, or its chat template cannot be used.
    """
    encoder_decoder = type(config) in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if getattr(config, "output_router_logits", False) and (encoder_decoder or _router_weight(config) is None):
        raise InputError(f"--model_name_or_path '{name}': its config.json asks for the loss of its routers "
                         f"(output_router_logits), which is not computed for {config.model_type}; set it to false")
    if encoder_decoder:
        for flag, value, unused in (("chat_template", chat_template, ("auto", "none")),
                                    ("system_prompt", system_prompt, (None,))):
            if value not in unused:
                raise InputError(f"--{flag} {value}: {name} is an encoder-decoder, which reads plain text")
        return EncoderDecoder(config, tokenizer, generation, Frame(before=prefix))
    masked = type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING or masked:
        raise InputError(f"--model_name_or_path '{name}': {config.model_type} writes no text; allowed is what "
                         "AutoModelForSeq2SeqLM loads (T5, mT5, ByT5, UL2, BART, Pegasus, T5Gemma, ...) and what "
                         "AutoModelForCausalLM loads (GPT-2, GPT-Neo, OPT, Llama, Qwen, SmolLM, Gemma, ...)")
    template = tokenizer.chat_template if chat_template == "auto" else None
    if chat_template not in ("auto", "none"):
        if not Path(chat_template).is_file():
            raise InputError(f"--chat_template {chat_template}: no such file; allowed are auto, none, or a file with a "
                             "Jinja template")
        template = read_text(Path(chat_template))
    if template is None and system_prompt is not None:
        raise InputError(f"--system_prompt: {name} is used without a chat template, so there is no system")
    ends = tokenizer.convert_ids_to_tokens(_ends(tokenizer, generation))
    frame = Frame(prefix, "\n") if template is None else _chat_frame(
        tokenizer, template, {None: None, "none": ""}.get(system_prompt, system_prompt), ends, prefix)
    return DecoderOnly(config, tokenizer, generation, frame)


def _router_weight(config) -> float | None:
    """What the loss of a model's routers is multiplied by."""
    return getattr(config, "router_aux_loss_coef", getattr(config, "aux_loss_coef", None))


def _loss_of_routers(config, outputs) -> torch.Tensor | float:
    """What a mixture of experts adds to its loss, as the library does; 0 where its config does not ask for it."""
    return 0.0 if getattr(outputs, "aux_loss", None) is None else _router_weight(config) * outputs.aux_loss


def _chat_frame(tokenizer, template: str, system: str | None, ends: Sequence[str], prefix: str) -> Frame:
    """What a chat template puts around the user's turn and the assistant's, up to the first token that ends it."""
    frame = None
    for user, answer in PROBES:
        turns = [{"role": "system", "content": system}] if system is not None else []
        turns.append({"role": "user", "content": user})
        try:
            prompt, whole = (tokenizer.apply_chat_template(
                some, chat_template=DATED + template, tokenize=False, add_generation_prompt=some is turns,
                enable_thinking=False, date_string=TODAY)
                for some in (turns, [*turns, {"role": "assistant", "content": answer}]))
        except Exception as error:  # whatever a template raises, by itself too
            raise InputError(f"--chat_template: {' '.join(str(error).split())}") from error
        for text, part, words in ((prompt, user, "user's turn"), (whole[len(prompt):], answer, "assistant's turn")):
            if text.count(part) != 1:
                raise InputError(f"--chat_template: it does not put the {words} into the text as it is, once")
        if not whole.startswith(prompt):
            raise InputError("--chat_template: the prompt is not a beginning of the text with the answer, so there is "
                             "no telling what the model should write; give another, or none")
        before, between = prompt.split(user)
        lead, after = whole[len(prompt):].split(answer)
        closing = min((after.find(end) + len(end) for end in ends if end in after), default=0)
        if not closing:
            raise InputError(f"--chat_template: no end token of the model ({', '.join(ends)}) closes the answer")
        if lead.strip():  # words before the answer are for the model to read, not to write
            between, lead = between + lead, ""
        found = Frame(before + prefix, between, lead, after[:closing], own=False)
        if frame not in (None, found):
            raise InputError("--chat_template: what it puts around the turns depends on what they say")
        frame = found
    return frame


def _ends(tokenizer, generation: GenerationConfig) -> list[int]:
    """Ids of the tokens that end a text, the tokenizer's own first; raise InputError where there are none."""
    own = generation.eos_token_id
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    found = [*dict.fromkeys(i for i in ids if i is not None)]
    if not found:
        raise InputError("--model_name_or_path: neither its tokenizer nor its generation_config.json names a token "
                         "that ends a text (eos_token)")
    return found


def padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    """(rows, width), filled up on the right."""
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def _positions_by_mask(model, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Hook before a forward pass: the positions of its tokens, or embedded ones, are those that the mask counts."""
    if kwargs.get("attention_mask") is None:  # nothing is padded, and the model counts by itself
        return args, kwargs | {"position_ids": None}
    given = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
    positions = (kwargs["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
    return args, kwargs | {"position_ids": positions[:, -given.shape[1]:]}


def _additive(mask: torch.Tensor) -> torch.Tensor:
    return (~mask).float() * torch.finfo(torch.float32).min
