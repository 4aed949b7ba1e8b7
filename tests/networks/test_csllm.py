"""CSLLM: the material string, and scores of a tiny Llama with a small tokenizer, adapters included."""

import json
import os
import pickle
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import graphene, mx2
from ase.spacegroup import crystal
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.evaluation.columns import synthesizability
from models.evaluation.rows import table
from models.evaluation.settings import Settings
from models.networks.csllm import CSLLM, LABELS, CSLLMError, material_string, prompt

BE_IN_RU = (
    "225 |6.118,6.118,6.118,90.00,90.00,90.00| "
    "(Be-4b[0.5 0.5 0.5])->(In-4a[0. 0. 0.])->(Ru-8c[0.25 0.25 0.25])"
)


def heusler(primitive: bool) -> Atoms:
    return crystal(
        ["Be", "In", "Ru"],
        [(0.5, 0.5, 0.5), (0, 0, 0), (0.25, 0.25, 0.25)],
        spacegroup=225,
        cellpar=[6.118, 6.118, 6.118, 90, 90, 90],
        primitive_cell=primitive,
    )


def layers() -> list[Atoms]:
    return [mx2("MoS2", vacuum=7.5), graphene(vacuum=7.5), heusler(True), mx2("WSe2", kind="1T", vacuum=7.5)]


def save_tokenizer(folder, merges: int, corpus: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, Llama-3's kind; without merges every label is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258 + merges,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    fast.save_pretrained(folder)
    return fast


def save_base(folder, merges: int = 200):
    corpus = [prompt(material_string(a)) + label for a in layers() for label in LABELS] * 5
    tokenizer = save_tokenizer(folder, merges, corpus)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_adapter(folder, base):
    """LoRA adapters with random weights on both sides, so that they do something."""
    model = LlamaForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.mark.parametrize("primitive", [True, False])
def test_documented_material_string(primitive):
    assert material_string(heusler(primitive)) == BE_IN_RU


def test_material_string_sees_through_noise_and_setting():
    layer = mx2("MoS2", vacuum=7.5)
    exact = material_string(layer)
    assert exact.startswith("187 |3.180,3.180,18.190,90.00,90.00,120.00| (Mo-1b[")
    moved = layer.repeat((2, 1, 1))
    moved.positions += [0.3, 0.2, 0.0]
    assert material_string(moved) == exact
    noisy = heusler(False)
    noisy.rattle(0.005, seed=0)
    assert material_string(noisy).split()[0] == "225"
    assert material_string(noisy, symprec=1e-4).split()[0] == "1"


def test_material_string_ignores_print_options():
    with np.printoptions(precision=2, suppress=True):
        assert "0.33333333 0.66666667" in material_string(graphene(vacuum=7.5))


def test_prompt_is_the_training_text():
    assert prompt("S") + LABELS[0] == 'Input: Can this material structure be synthesized "S"? \n Output: True'


def chain_rule_score(folder, text, peft=None):
    """P(True) by multiplying next-token probabilities, one forward pass a token."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    model = (PeftModel.from_pretrained(model, str(peft)) if peft else model).eval()
    p = {}
    for label in LABELS:
        ids = tokenizer(text)["input_ids"]
        p[label] = 1.0
        for token in tokenizer(label)["input_ids"]:
            with torch.no_grad():
                p[label] *= torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)[token].item()
            ids = ids + [token]
    return p[LABELS[0]] / (p[LABELS[0]] + p[LABELS[1]]), sum(p.values())


def test_scores_with_adapters(base, adapter):
    structures = layers()
    with_adapter = CSLLM.from_pretrained(adapter)
    plain = CSLLM.from_pretrained(base)
    scores = with_adapter.score(structures, batch_size=3)

    assert scores.shape == (4,) and ((scores > 0) & (scores < 1)).all()
    assert np.abs(scores - plain.score(structures)).max() > 0.01
    np.testing.assert_allclose(scores, [with_adapter.score([a])[0] for a in structures], atol=1e-6)
    np.testing.assert_allclose(scores, with_adapter.score(structures, batch_size=100), atol=1e-6)
    with_adapter.score(structures)
    for index, atoms in enumerate(structures):
        score, mass = chain_rule_score(base, prompt(material_string(atoms)), adapter)
        assert scores[index] == pytest.approx(score, abs=1e-5)
        assert with_adapter.label_mass[index] == pytest.approx(mass, rel=1e-3)


def test_labels_of_several_tokens(tmp_path):
    folder = save_base(tmp_path, merges=0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert [len(tokenizer(label)["input_ids"]) for label in LABELS] == [5, 6]
    scorer = CSLLM.from_pretrained(folder)
    structures = layers()
    # Byte by byte the labels share their space, which the chain rule counts for both.
    expected = [chain_rule_score(folder, prompt(material_string(a)))[0] for a in structures]
    np.testing.assert_allclose(scorer.score(structures, batch_size=3), expected, atol=1e-5)


def test_a_bad_structure_costs_one_score(base, capsys):
    molecule = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.75]])
    scorer = CSLLM.from_pretrained(base)
    scores = scorer.score([layers()[0], molecule, layers()[1]])
    assert np.isnan(scores[1]) and np.isfinite(scores[[0, 2]]).all()
    assert list(scorer.failures) == [1] and "H2" in scorer.failures[1]
    assert capsys.readouterr().out.startswith("CSLLM: structure 1 is not scored: H2")
    assert scorer.score([]).shape == (0,)


def test_published_layout_and_base_override(tmp_path, base):
    base_beside = save_base(tmp_path / "llama3-8bf-hf")
    save_adapter(tmp_path / "synthesis_llm_llama3", base_beside)
    config = tmp_path / "synthesis_llm_llama3" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base_beside), "/data/of/the/authors/llama3"))
    score = CSLLM.from_pretrained(tmp_path).score(layers()[:1])
    assert score == CSLLM.from_pretrained(tmp_path / "synthesis_llm_llama3", base=base).score(layers()[:1])
    with pytest.raises(CSLLMError, match="--csllm-base"):
        CSLLM.from_pretrained(tmp_path / "synthesis_llm_llama3")


def test_errors_are_one_clear_line(tmp_path):
    cases = (("nobody/no-model", "give --csllm its folder"), (tmp_path, "a folder with a model"))
    for source, advice in cases:
        with pytest.raises(CSLLMError, match=advice) as error:
            CSLLM.from_pretrained(source)
        assert "\n" not in str(error.value)


def test_dtype(base):
    assert CSLLM.from_pretrained(base, dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_evaluator_scores_with_csllm_where_it_is_given(base, adapter):
    structures = {f"s{k}": atoms for k, atoms in enumerate(layers())}
    rows = table([{"material_id": name} for name in [*structures, "refused"]])
    settings = Settings(csllm=str(adapter), csllm_base=str(base), csllm_dtype="float32")
    found, said = synthesizability(rows, structures, settings)
    assert "out of distribution" in said and list(found) == list(structures)
    expected = CSLLM.from_pretrained(adapter, base, dtype="float32").score(list(structures.values()))
    np.testing.assert_allclose([columns["p_synth"] for columns in found.values()], expected, rtol=1e-6)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_weights_in_a_pickle_are_refused_and_not_run(kind, base, adapter, tmp_path):
    folder = shutil.copytree({"base": base, "adapter": adapter}[kind], tmp_path / kind)
    weights = folder / {"base": "model.safetensors", "adapter": "adapter_model.safetensors"}[kind]
    weights.unlink()
    for name in ("pytorch_model.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(CSLLMError, match="safetensors"):
        CSLLM.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_code_beside_the_weights_is_not_run(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CSLLMError, match="cannot be loaded"):
        CSLLM.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()
