"""CSLLM: is a crystal synthesizable? asked of a language model that was fine-tuned on the question.

Song et al., "Accurate prediction of synthesizability and precursors of 3D crystal structures via large
language models", Nat. Commun. 16, 6530 (2025): LoRA adapters on Llama-3-8B. It was trained on 3D crystals, so
a monolayer is out of its distribution.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from models.crystals.thresholds import SYMPREC
from models.infra.files import read_json

LABELS = (" True", " False")
PUBLISHED_ADAPTER = "synthesis_llm_llama3"  # folders of the published repository; it has other adapters too
PUBLISHED_BASE = "llama3-8bf-hf"


class CSLLMError(RuntimeError):
    """The model cannot be had; the message is one line and says what to do."""


def material_string(atoms: Atoms, symprec: float = SYMPREC) -> str:
    """The model's description of a crystal.

    Args:
        atoms: crystal with three lattice vectors; of a layer, the cell with its vacuum.
        symprec: tolerance of the symmetrisation, Å.

    Returns:
        `{space group} |a,b,c,alpha,beta,gamma| (El-{mult}{letter}[x y z])->(…)` of the symmetrised
        conventional cell; lengths in Å with 3 decimals, angles in degrees with 2, a parenthesis a site.

    Raises:
        ValueError: the structure cannot be symmetrised.
    """
    from pyxtal import pyxtal

    crystal = pyxtal()
    try:
        crystal._from_pymatgen(_symmetrised(atoms, symprec))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{atoms.get_chemical_formula()}: no material string ({reason})") from error
    a, b, c, alpha, beta, gamma = crystal.lattice.get_para(degree=True)
    lattice = f"|{a:.3f},{b:.3f},{c:.3f},{alpha:.2f},{beta:.2f},{gamma:.2f}|"
    sites = [
        f"({site.specie}-{site.wp.multiplicity}{site.wp.letter}{_coordinates(site.position)})"
        for site in crystal.atom_sites
    ]
    return f"{crystal.group.number} {lattice} {'->'.join(sites)}"


def prompt(string: str) -> str:
    """The training text up to its label, which follows as " True" or " False"."""
    return f'Input: Can this material structure be synthesized "{string}"? \n Output:'


class CSLLM:
    """Scores crystals by the probability of the label True against False.

    Attributes:
        name: where the model came from, for the provenance.
        failures: of the last `score`: index of the structure -> why it has no score.
        label_mass: [n] of the last `score`: P(True) + P(False) among all continuations. Near 1 the model
            answers as it was trained to; near 0 it is not a CSLLM. NaN where there is no score.
    """

    def __init__(self, model, tokenizer, name: str = "CSLLM"):
        """Wrap a transformers causal language model and its tokenizer."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.failures: dict[int, str] = {}
        self.label_mass = np.empty(0)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, base: str | Path | None = None, device: str = "cpu", dtype="auto"
    ) -> "CSLLM":
        """Load from a local folder or the hub.

        Args:
            path_or_repo: a folder or hub repository with LoRA adapters (`adapter_config.json`), with a whole
                model, or laid out as CSLLM's own (`synthesis_llm_llama3/` and `llama3-8bf-hf/`).
            base: base model for the adapters, folder or hub name; default is the base beside the adapters,
                else the one that their configuration names.
            device: torch device.
            dtype: torch dtype, its name, or "auto", the checkpoint's (8 B parameters: 16 GB in bfloat16).

        Raises:
            CSLLMError: model or base cannot be had.
        """
        folder = _local_folder(path_or_repo, with_base=base is None)
        if (folder / PUBLISHED_ADAPTER).is_dir():
            if base is None and (folder / PUBLISHED_BASE).is_dir():
                base = folder / PUBLISHED_BASE
            folder = folder / PUBLISHED_ADAPTER
        if not (folder / "adapter_config.json").is_file():
            model, tokenizer = _load_model(folder, dtype, f"give --csllm a folder with a model, not {folder}")
            return cls(model.to(device), tokenizer, str(path_or_repo))

        if not (folder / "adapter_model.safetensors").is_file():
            raise CSLLMError(
                f"{folder} has no adapter_model.safetensors: weights in a pickle (.bin) are not read, for a "
                "pickle is a program; save them as safetensors"
            )

        from peft import PeftModel

        base = base or read_json(folder / "adapter_config.json")["base_model_name_or_path"]
        model, tokenizer = _load_model(base, dtype, "give the base model of the adapters with --csllm-base")
        try:
            model = PeftModel.from_pretrained(model, str(folder))
        except Exception as error:
            raise CSLLMError(
                f"adapters in {folder} do not fit the base model {base} ({_reason(error)}): "
                "give the right one with --csllm-base"
            ) from error
        return cls(model.to(device), tokenizer, f"{path_or_repo} on {base}")

    def score(self, atoms_list: Sequence[Atoms], batch_size: int = 8, symprec: float = SYMPREC) -> np.ndarray:
        """P(True) = p(True) / (p(True) + p(False)) of each structure.

        Args:
            atoms_list: n crystals.
            batch_size: sequences a forward pass.
            symprec: as in `material_string`.

        Returns:
            [n] probabilities; NaN for a structure without a material string, which is reported in one line.
        """
        self.failures, texts = {}, {}
        for index, atoms in enumerate(atoms_list):
            try:
                texts[index] = prompt(material_string(atoms, symprec))
            except ValueError as error:
                self.failures[index] = str(error)
                print(f"CSLLM: structure {index} is not scored: {error}", flush=True)
        scores = np.full(len(atoms_list), np.nan)
        self.label_mass = np.full(len(atoms_list), np.nan)
        if texts:
            log_p = self._label_log_probs(list(texts.values()), batch_size)
            indices = list(texts)
            scores[indices] = 1 / (1 + np.exp(log_p[:, 1] - log_p[:, 0]))
            self.label_mass[indices] = np.exp(log_p).sum(axis=1)
        return scores

    def _label_log_probs(self, texts: list[str], batch_size: int) -> np.ndarray:
        """Log-probabilities [n, 2] of the labels as continuations of the texts.

        A label's tokens are those after the longest beginning that both labelled texts share, whatever the
        tokenizer does at the border of text and label. Labels of one token share one forward pass.
        """
        jobs = {}
        for row, text in enumerate(texts):
            pair = [self.tokenizer(text + label)["input_ids"] for label in LABELS]
            start = len(os.path.commonprefix(pair))
            for column, ids in enumerate(pair):
                jobs.setdefault(tuple(ids[:-1]), []).append((row, column, start, ids))
        result = np.full((len(texts), 2), np.nan)
        sequences = sorted(jobs, key=len)
        for first in range(0, len(sequences), batch_size):
            batch = sequences[first : first + batch_size]
            wanted = [(b, *job) for b, sequence in enumerate(batch) for job in jobs[sequence]]
            positions = sorted({p for _, _, _, start, ids in wanted for p in range(start - 1, len(ids) - 1)})
            log_p = self._log_softmax(batch, positions)
            at = {position: k for k, position in enumerate(positions)}
            for b, row, column, start, ids in wanted:
                result[row, column] = sum(log_p[b, at[p - 1], ids[p]].item() for p in range(start, len(ids)))
        return result

    def _log_softmax(self, sequences: list[tuple[int, ...]], positions: list[int]):
        """Log-probabilities [len(sequences), len(positions), vocabulary] of the token after each position.

        Sequences are padded at their end, which no causal position before it sees. Only the wanted positions
        pass the output layer: the vocabulary has 128,000 entries.
        """
        import torch

        device = self.model.device
        length = max(len(sequence) for sequence in sequences)
        tokens = torch.zeros(len(sequences), length, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        with torch.inference_mode():
            logits = self.model(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                logits_to_keep=torch.tensor(positions, device=device),
                use_cache=False,
            ).logits
        return torch.log_softmax(logits.float(), dim=-1).cpu()


def _symmetrised(atoms: Atoms, symprec: float):
    """Conventional cell as a pymatgen Structure, exactly symmetric where `atoms` is within `symprec` Å.

    Done beforehand, because pyxtal takes its tolerance for fractional coordinates as well.
    """
    from pymatgen.core import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    structure = Structure(atoms.cell.array, atoms.get_chemical_symbols(), atoms.get_scaled_positions())
    return SpacegroupAnalyzer(structure, symprec=symprec).get_refined_structure()


def _coordinates(position: np.ndarray) -> str:
    """Fractional coordinates [3] as numpy prints them, without the noise (1e-17) that brings exponents."""
    return np.array2string(np.round(position, 8) % 1.0, precision=8, floatmode="maxprec")


def _local_folder(path_or_repo: str | Path, with_base: bool) -> Path:
    """The folder itself, or the hub repository's snapshot without what is not needed."""
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    ignore = ["method_llm*", "precursor_llm*"] + ([] if with_base else [f"{PUBLISHED_BASE}/*"])
    try:
        return Path(snapshot_download(str(path_or_repo), ignore_patterns=ignore))
    except Exception as error:
        raise CSLLMError(
            f"CSLLM '{path_or_repo}' is no local folder and not to be had from the hub ({_reason(error)}): "
            "download it and give --csllm its folder"
        ) from error


def _load_model(source: str | Path, dtype, advice: str):
    """Causal language model and tokenizer through transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # a pickle, or code beside the weights, is a program: neither is read
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(source), dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        reason = _reason(error)
        raise CSLLMError(f"language model '{source}' cannot be loaded ({reason}): {advice}") from error
    return model, tokenizer


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
