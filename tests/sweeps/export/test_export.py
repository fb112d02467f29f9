"""Laws of the exported files: plain diffusers makes the checkpoint's pictures from every format. About a minute."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from sweeps.execution.rewind import rewind_damaged
from sweeps.export.export import MARKER, WRITERS, export_checkpoint
from sweeps.export.layouts import original_layout
from sweeps.export.model_card import base_model_licence, code, model_card, quoted
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from sweeps.results.finalists import trainings_of
from sweeps.results.results import read_results
from tests.sweeps.fake_run import entry, write_sweep, write_trial
from training.checkpoint import load_pipeline, open_checkpoint, save_checkpoint
from training.config import DreamBoothConfig, LoraConfig
from training.layout import LORA_FILE
from training.methods import copy_for_training

PROMPT = "a photo of sks woman"
TOLERANCE = 1e-4
"""Largest difference of a picture's values in [0, 1]: merging a LoRA rounds its weights once in float32."""

LORA_CONFIGS = {
    "lora_both": LoraConfig(rank=3, lora_alpha=6, learning_rate=1e-3, train_text_encoder=True, seed=1),
    "lora_unet": LoraConfig(rank=2, learning_rate=1e-4),
}
OTHER_ADAPTERS = {
    "dora": LoraConfig(rank=2, learning_rate=1e-3, use_dora=True, target_modules="all", train_text_encoder=True),
    "rslora": LoraConfig(rank=3, learning_rate=1e-3, use_rslora=True, target_modules="attention+ff", seed=2),
    "loha": LoraConfig(rank=2, lora_alpha=3, learning_rate=1e-3, adapter="loha", train_text_encoder=True),
    "lokr": LoraConfig(rank=1, lora_alpha_ratio=2, learning_rate=1e-3, adapter="lokr", target_modules="attention+ff"),
}
FULL_CONFIGS = {
    "full_both": DreamBoothConfig(learning_rate=1e-6, train_text_encoder=True),
    "full_unet": DreamBoothConfig(learning_rate=2e-6),
}
CONFIGS = {**LORA_CONFIGS, **OTHER_ADAPTERS, **FULL_CONFIGS}
WEIGHTLESS = {".json", ".md", ".txt"}


def write_checkpoint(trial_dir: Path, config: LoraConfig | DreamBoothConfig, base_model: str) -> None:
    """A checkpoint as training writes it, its weights moved away from the base model's without training."""
    modules = copy_for_training(config, base_model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(trial_dir, config, modules, 4, base_model, {})


@pytest.fixture(scope="module")
def run_dir(tiny_sd15: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs and two full fine-tunes of the tiny base model; `lora_both` is the champion."""
    run = tmp_path_factory.mktemp("runs") / "ada"
    write_sweep(run, "ada", [PROMPT], 8, [4])
    settings = yaml.safe_load((run / "sweep.yaml").read_text())
    anything = {
        "learning_rate": {"low": 1e-7, "high": 1e-2, "log": True},
        "train_text_encoder": {"choices": [False, True]},
    }
    lora = {"rank": {"low": 1, "high": 8}, "lora_alpha": {"choices": [None, 6]}, "seed": {"choices": [0, 1]}}
    settings |= {"base_model": tiny_sd15, "methods": {"lora": {**anything, **lora}, "dreambooth": anything}}
    (run / "sweep.yaml").write_text(json.dumps(settings))
    zero = entry(0, 0.1, trial="base", spread=0.01)
    write_trial(run, {"trial": "base", "method": "base", "status": "finished", "config": {}}, [zero])
    for i, (trial, config) in enumerate(CONFIGS.items()):
        write_checkpoint(run / "trials" / trial, config, tiny_sd15)
        write_trial(
            run,
            {
                "trial": trial,
                "method": config.method,
                "status": "finished",
                "config": config.model_dump(),
                "created": "2026-01-02T03:04:05+00:00",
            },
            [entry(4, 0.8 - 0.1 * i, trial=trial, spread=0.02)],
        )
    return run


def picture(pipeline: StableDiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="np", height=64, width=64
    ).images
    return np.asarray(images[0])


@pytest.fixture(scope="module")
def wanted(run_dir: Path, tiny_sd15: str) -> dict[str, np.ndarray]:
    """Each checkpoint's picture, and the base model's."""
    folders = {trial: run_dir / "trials" / trial / "checkpoint-4" for trial in CONFIGS}
    pictures = {
        trial: picture(load_pipeline(open_checkpoint(folder, tiny_sd15), tiny_sd15, device="cpu", dtype=torch.float32))
        for trial, folder in folders.items()
    }
    return {**pictures, "base": picture(load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32))}


def reload(kind: str, folder: Path, base: str) -> StableDiffusionPipeline:
    """The exported model as its users load it: with nothing of ours."""
    if kind == "diffusers":
        return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    (weights,) = folder.glob("*.safetensors")
    if kind == "checkpoint":
        return StableDiffusionPipeline.from_single_file(
            str(weights), config=base, local_files_only=True, safety_checker=None
        )
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True, safety_checker=None)
    pipeline.load_lora_weights(str(folder), weight_name=weights.name)
    return pipeline


CASES = [
    *((trial, kind) for trial in LORA_CONFIGS for kind in WRITERS),
    *(("rslora", kind) for kind in WRITERS),
    *(("dora", kind) for kind in WRITERS if kind != "kohya"),
    *((trial, kind) for trial in ("loha", "lokr") for kind in ("diffusers", "checkpoint")),
    *((trial, kind) for trial in FULL_CONFIGS for kind in ("diffusers", "checkpoint")),
]


@pytest.mark.parametrize(("trial", "kind"), CASES)
def test_every_format_reloads_to_the_checkpoint_s_pictures(
    run_dir: Path, tiny_sd15: str, wanted: dict[str, np.ndarray], tmp_path: Path, trial: str, kind: str
) -> None:
    """Written by us, loaded by plain diffusers: the same picture, which is not the base model's."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial=trial, format=kind)
    got = picture(reload(kind, folder, tiny_sd15))
    assert np.abs(got - wanted[trial]).max() < TOLERANCE
    assert np.abs(got - wanted["base"]).max() > 100 * TOLERANCE


def test_export_leaves_the_cached_base_model_as_it_was(run_dir: Path, tiny_sd15: str, tmp_path: Path) -> None:
    """Merging a LoRA happens in a copy."""
    from training.stable_diffusion import load_base_model

    before = {key: value.clone() for key, value in load_base_model(tiny_sd15).unet.state_dict().items()}
    export_checkpoint(run_dir, tmp_path / "out")
    after = load_base_model(tiny_sd15).unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def kohya_names(module: nn.Module, prefix: str, root: str, containers: set[str], endings: tuple[str, ...]) -> set[str]:
    """Kohya's rule: every linear layer inside a container class is called prefix, container path, layer path."""
    names = set()
    for path, container in module.named_modules():
        if type(container).__name__ in containers:
            for inner, layer in container.named_modules():
                if isinstance(layer, nn.Linear) and inner.endswith(endings):
                    names.add(".".join([prefix, *([root] if root else []), path, inner]).replace(".", "_"))
    return names


def test_kohya_keys_are_those_of_kohya_s_own_network(run_dir: Path, tiny_sd15: str, tmp_path: Path) -> None:
    """Module names by kohya's rule, three tensors each, alpha a float scalar of its own, not the rank."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial="lora_both", format="kohya")
    tensors = load_file(folder / "ada.safetensors")
    base = StableDiffusionPipeline.from_pretrained(tiny_sd15, local_files_only=True)
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    expected = kohya_names(base.unet, "lora_unet", "", {"Transformer2DModel"}, attention) | kohya_names(
        base.text_encoder, "lora_te", "text_model", {"CLIPAttention"}, ("q_proj", "k_proj", "v_proj", "out_proj")
    )
    assert {key.split(".", 1)[0] for key in tensors} == expected
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in tensors
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in tensors
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            assert (tensor.dtype, tensor.shape, float(tensor)) == (torch.float32, (), 6.0)
        else:
            assert tensor.dtype == torch.float32
            assert 3 in tensor.shape


def lycoris_update(tensors: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> torch.Tensor:
    """W' - W as ComfyUI computes it from a file of LyCORIS: Yeh et al. 2023, equations 4 and 6."""
    own = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.partition(".")[0] == name}
    alpha = float(own["alpha"])
    if "hada_w1_a" in own:
        scale = alpha / own["hada_w1_b"].shape[0]
        return (scale * (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])).view(
            weight.shape
        )
    ranks = [own[f"lokr_w{n}_b"].shape[0] for n in (1, 2) if f"lokr_w{n}" not in own]
    factors = [own[f"lokr_w{n}"] if f"lokr_w{n}" in own else own[f"lokr_w{n}_a"] @ own[f"lokr_w{n}_b"] for n in (1, 2)]
    scale = alpha / ranks[-1] if ranks else 1.0
    return (scale * torch.kron(factors[0], factors[1].flatten(1))).view(weight.shape)


@pytest.mark.parametrize("trial", ["loha", "lokr"])
def test_other_adapters_are_lycoris_files(
    trial: str, run_dir: Path, tiny_sd15: str, wanted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Read as ComfyUI reads them, they make the checkpoint's picture; as a diffusers LoRA they are refused."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial=trial, format="kohya")
    tensors = load_file(folder / "ada.safetensors")
    base = StableDiffusionPipeline.from_pretrained(tiny_sd15, local_files_only=True, dtype=torch.float32)
    names = {key.partition(".")[0] for key in tensors}
    for module, prefix in ((base.unet, "lora_unet_"), (base.text_encoder, "lora_te_text_model_")):
        for path, layer in module.named_modules():
            name = prefix + path.replace(".", "_")
            if name in names:
                names.remove(name)
                layer.weight.data = layer.weight.data + lycoris_update(tensors, name, layer.weight)
    assert not names
    assert np.abs(picture(base) - wanted[trial]).max() < TOLERANCE
    metadata = metadata_of(folder / "ada.safetensors")
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"]) == {"algo": trial}
    with pytest.raises(ValueError, match=r"export: diffusers loads no Lo(Ha|Kr)"):
        export_checkpoint(run_dir, tmp_path / "lora", trial=trial, format="lora")


def test_a_dora_is_not_written_for_those_who_read_it_otherwise(run_dir: Path, tmp_path: Path) -> None:
    """Better no file than one that makes other pictures than those that were scored."""
    with pytest.raises(ValueError, match="compute another model from a DoRA, and dora is one; use diffusers or"):
        export_checkpoint(run_dir, tmp_path / "out", trial="dora", format="kohya")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", list(WRITERS))
def test_the_cards_program_runs_as_printed(kind: str, run_dir: Path, tiny_sd15: str, tmp_path: Path) -> None:
    """Also where the base model lies in half precision; but for the places, which only the reader knows."""
    half = tmp_path / "half"
    StableDiffusionPipeline.from_pretrained(tiny_sd15, dtype=torch.float16, safety_checker=None).save_pretrained(half)
    folder = export_checkpoint(run_dir, tmp_path / "out", format=kind)
    (program,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    program = program.replace("<this folder>", str(folder)).replace('"tiny-sd"', repr(str(half)))
    if kind == "checkpoint":  # its configs come from the hub, where they are not at hand
        program = program.replace("dtype=", f"config={str(half)!r}, local_files_only=True, dtype=")
    program = program.replace(").images[0]", ", num_inference_steps=1, height=64, width=64).images[0]")
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102 -- it is what the card tells people to do
    assert names["image"].size == (64, 64)
    assert {parameter.dtype for parameter in names["pipeline"].unet.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in names["pipeline"].text_encoder.parameters()} == {torch.float32}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="np") as stored:
        return dict(stored.metadata() or {})


def test_kohya_metadata_says_what_a1111_shows(run_dir: Path, tmp_path: Path) -> None:
    """Rank, alpha, module, learning rate, steps, seed, base model and trigger words, all text."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial="lora_both", format="kohya")
    metadata = metadata_of(folder / "ada.safetensors")
    expected = {
        "ss_network_dim": "3",
        "ss_network_alpha": "6.0",
        "ss_network_module": "networks.lora",
        "ss_learning_rate": "0.001",
        "ss_steps": "4",
        "ss_seed": "1",
        "ss_sd_model_name": "tiny-sd",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": "sks",
        "modelspec.date": "2026-01-02T03:04:05+00:00",
    }
    assert expected.items() <= metadata.items()
    assert json.loads(metadata["ss_tag_frequency"])["photos"].keys() == {PROMPT}
    assert len(metadata["sshs_model_hash"]) == 64


def test_lora_file_keeps_its_adapter_metadata(run_dir: Path, tmp_path: Path) -> None:
    """Without it alpha comes back as the rank; the text encoder's keys are those of transformers 4 too."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial="lora_both", format="lora")
    path = folder / "pytorch_lora_weights.safetensors"
    assert json.loads(metadata_of(path)["lora_adapter_metadata"])["unet.lora_alpha"] == 6
    text_keys = [key for key in load_file(path) if key.startswith("text_encoder.")]
    assert text_keys
    assert all(key.startswith("text_encoder.text_model.encoder.") for key in text_keys)


def test_pipeline_folder_reads_in_transformers_4_too(run_dir: Path, tmp_path: Path) -> None:
    """There a text encoder without `text_model.` in its names would silently start from random weights."""
    folder = export_checkpoint(run_dir, tmp_path / "out", format="diffusers")
    assert all(key.startswith("text_model.") for key in load_file(folder / "text_encoder" / "model.safetensors"))


def test_single_file_has_the_original_layout(run_dir: Path, tiny_sd15: str, tmp_path: Path) -> None:
    """Names that every loader looks for, the VAE's attention as convolutions, no weight lost or doubled."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial="full_both", format="checkpoint")
    tensors = load_file(folder / "ada.safetensors")
    for key in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.7.0.skip_connection.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.11.0.out_layers.3.weight",
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ):
        assert key in tensors
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4
    pipeline = load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert len(tensors) == sum(len(part.state_dict()) for part in parts)
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for p in parts for t in p.state_dict().values())


def test_a_weight_without_a_place_in_the_original_layout_is_refused(tiny_sd15: str) -> None:
    """Better no file than one with a weight under a name that nobody reads."""
    pipeline = load_pipeline(None, tiny_sd15, device="cpu", dtype=torch.float32)
    pipeline.unet.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no place for the weight extra\.weight"):
        original_layout(pipeline)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_the_card_says_what_it_is_and_how_good(run_dir: Path, tmp_path: Path, kind: str) -> None:
    """Base, method, settings, scores with intervals, champion rule, trigger words, licence, how to load."""
    folder = export_checkpoint(run_dir, tmp_path / "out", format=kind)
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["base_model"] == "tiny-sd"
    assert "lora" in header["tags"]
    for part in (
        "A LoRA of rank 3 of `tiny-sd`",
        "4 steps at learning rate 1e-3 (seed 1)",
        "`sks`",
        "0.800 [0.78",
        "base model | 0.100",
        "champion. Rule: the highest face similarity among checkpoints",
        "lora_alpha: 6.0",
        "look the licence up",
        "vggface2",
        "```python",
    ):
        assert part in text
    marker = json.loads((folder / MARKER).read_text())
    assert (marker["trial"], marker["step"], marker["format"], marker["champion"]) == ("lora_both", 4, kind, True)


def test_a_trial_that_is_not_the_champion_does_not_claim_to_be(run_dir: Path, tmp_path: Path) -> None:
    """Its card names the champion."""
    text = (export_checkpoint(run_dir, tmp_path / "out", trial="full_unet") / "README.md").read_text()
    assert "The sweep's champion is trial lora_both, step 4" in text
    assert "A full DreamBooth fine-tune of `tiny-sd`" in text


@pytest.fixture
def trained_again(run_dir: Path, tiny_sd15: str, tmp_path: Path) -> tuple[Path, str]:
    """The run with its champion's settings trained with two other seeds, and the name of the first such training."""
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    settings = json.loads((run / "sweep.yaml").read_text()) | {"confirm": {"finalists": 1, "seeds": 2}}
    (run / "sweep.yaml").write_text(json.dumps(settings))
    results, again = read_results(run), RunFolder(run).confirm
    record = {"method": "base", "status": "finished", "config": {}}
    again.write(TrialRecord.model_validate({"trial": "base", **record, "checkpoints": [entry(0, 0.15, trial="base")]}))
    trainings = trainings_of(results.finalists[0], {trial.trial: trial for trial in results.trials})
    for config, score in zip(trainings, (0.7, 0.74), strict=True):
        trial = trial_id(config)
        point = entry(4, score, trial=trial) | {"checkpoint": f"confirm/{trial}/checkpoint-4"}
        changes = {"trial": trial, "method": "lora", "config": config.model_dump(mode="json"), "checkpoints": [point]}
        again.write(TrialRecord.model_validate(record | changes))
        write_checkpoint(again.trial_dir(trial), config, tiny_sd15)
    return run, trial_id(trainings[0])


def test_a_finalist_s_training_with_another_seed_is_exported_by_its_name(
    trained_again: tuple[Path, str], tmp_path: Path
) -> None:
    """Its own weights and scores, beside the base model's on the same pictures; it claims nothing more."""
    run, trial = trained_again
    dest = export_checkpoint(run, tmp_path / "out", trial=trial, format="lora")
    mine, exported = (load_file(folder / LORA_FILE) for folder in (run / "confirm" / trial / "checkpoint-4", dest))
    bytes_of = [sorted(tensor.numpy().tobytes() for tensor in file.values()) for file in (mine, exported)]
    assert bytes_of[0] == bytes_of[1], "under other names, as transformers 4 reads them too"
    card = (dest / "README.md").read_text()
    assert "one of 2 trainings of trial lora_both's settings with other seeds" in card
    assert "| this model | 0.700" in card
    assert "| base model | 0.150" in card
    assert "seed: 1001" in card
    assert "The sweep's champion is trial lora_both" in card


def test_a_finalist_s_damaged_training_is_set_back(trained_again: tuple[Path, str]) -> None:
    """Only that: it may be exported like any trial's checkpoint."""
    run, trial = trained_again
    assert read_results(run).confirmations.is_whole
    assert list(rewind_damaged(RunFolder(run))) == []
    file = run / "confirm" / trial / "checkpoint-4" / LORA_FILE
    file.write_bytes(file.read_bytes()[:-5])
    (said,) = rewind_damaged(RunFolder(run))
    assert said.startswith(f"{trial}: the weights of step 4 are damaged")
    ended = {record.trial: record.is_over for record in RunFolder(run).confirm.trials()}
    assert len(ended) == 2
    assert [name for name, is_over in ended.items() if not is_over] == [trial]
    assert all(record.is_over for record in RunFolder(run).trials())
    assert not read_results(run).confirmations.is_whole


@pytest.mark.parametrize(("trial", "kind"), [("lora_both", kind) for kind in WRITERS] + [("full_both", "diffusers")])
def test_no_path_of_this_machine_leaves_with_the_export(
    run_dir: Path, tiny_sd15: str, tmp_path: Path, trial: str, kind: str
) -> None:
    """Neither the run's folder nor the base model's is named in any exported byte."""
    folder = export_checkpoint(run_dir, tmp_path / "out", trial=trial, format=kind)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for private in (str(Path(tiny_sd15).parent), str(run_dir), str(tmp_path)):
            assert private.encode() not in content, path


def test_licence_comes_from_the_base_model_s_card_or_metadata(tmp_path: Path) -> None:
    """`license`, or `license_name` where that is `other`; nothing is guessed."""
    card = tmp_path / "README.md"
    assert base_model_licence(str(tmp_path)) is None
    card.write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
    assert base_model_licence(str(tmp_path)) == "creativeml-openrail-m"
    card.write_text("---\nlicense: other\nlicense_name: my-licence\n---\n")
    assert base_model_licence(str(tmp_path)) == "my-licence"
    for broken in ("no header", "---\n: [\n---\n", "---\n- a list\n---\n"):
        card.write_text(broken)
        assert base_model_licence(str(tmp_path)) is None
    assert base_model_licence("nobody/has-cached-this") is None


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"trial": "full_both", "format": "lora"}, "use diffusers or checkpoint"),
        ({"trial": "full_both", "format": "kohya"}, "use diffusers or checkpoint"),
        ({"format": "onnx"}, "must be one of diffusers, lora, kohya, checkpoint"),
        ({"trial": "nobody"}, "is not in this run"),
        ({"trial": "base"}, "untouched base model"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(
    run_dir: Path, tmp_path: Path, options: dict[str, Any], law: str
) -> None:
    """Nothing is written then."""
    with pytest.raises(ValueError, match=law):
        export_checkpoint(run_dir, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_an_export_and_nothing_else(run_dir: Path, tmp_path: Path) -> None:
    """A folder with anything foreign in it stays as it is."""
    dest = export_checkpoint(run_dir, tmp_path / "out", format="lora")
    export_checkpoint(run_dir, dest, format="kohya")
    assert not (dest / "pytorch_lora_weights.safetensors").exists()
    (dest / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"found mine\.txt"):
        export_checkpoint(run_dir, dest, format="lora")
    assert (dest / "ada.safetensors").exists()
    for taken in (tmp_path / "file", tmp_path / "model.safetensors"):
        taken.write_text("x")
        with pytest.raises(ValueError, match="DEST"):
            export_checkpoint(run_dir, taken)
    with pytest.raises(ValueError, match="DEST must be empty"):
        export_checkpoint(run_dir, run_dir)


@pytest.fixture
def broken_run(run_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """The run with a checkpoint that can be damaged: same settings, one LoRA of its own."""
    run = tmp_path / "run"
    (run / "trials").mkdir(parents=True)
    (run / "sweep.yaml").write_text((run_dir / "sweep.yaml").read_text())
    for trial in ("base", "lora_unet"):
        (run / "trials" / trial).mkdir()
        (run / "trials" / trial / "trial.json").write_text((run_dir / "trials" / trial / "trial.json").read_text())
    source, target = (folder / "trials" / "lora_unet" / "checkpoint-4" for folder in (run_dir, run))
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return run


def test_a_damaged_checkpoint_is_refused_and_leaves_no_half_export(broken_run: Path, tmp_path: Path) -> None:
    """A flipped byte in the weights is found before anything is written."""
    weights = broken_run / "trials" / "lora_unet" / "checkpoint-4" / "pytorch_lora_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="are damaged"):
        export_checkpoint(broken_run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "trials/../../elsewhere"])
def test_a_checkpoint_outside_the_run_folder_is_refused(broken_run: Path, tmp_path: Path, path: str) -> None:
    """trial.json may come from somebody else."""
    file = broken_run / "trials" / "lora_unet" / "trial.json"
    content = json.loads(file.read_text())
    content["checkpoints"][0]["checkpoint"] = path
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="inside the run folder"):
        export_checkpoint(broken_run, tmp_path / "out")


def test_without_a_champion_a_trial_must_be_named(broken_run: Path, tmp_path: Path) -> None:
    """The message says why there is none; the named trial is exported."""
    file = broken_run / "trials" / "lora_unet" / "trial.json"
    content = json.loads(file.read_text())
    content["checkpoints"][0]["prompt_alignment"] = 0.01
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"needs a prompt alignment of at least .* --trial"):
        export_checkpoint(broken_run, tmp_path / "out")
    text = (export_checkpoint(broken_run, tmp_path / "out", trial="lora_unet", format="lora") / "README.md").read_text()
    assert "The sweep's champion is none" in text


HOSTILE = 'a "photo" of `sks` woman\'s\n---\n```\n# <b>[x](y)</b> \\ {base} \N{GRINNING FACE}: =1+1 | ``two``'


def test_any_prompt_leaves_the_card_whole(run_dir: Path, tmp_path: Path) -> None:
    """Its header is YAML, its snippet is Python with the very prompt, and nothing of the prompt is markup."""
    results = read_results(run_dir)
    assert results.config is not None
    subject = results.config.subject.model_copy(update={"instance_prompt": HOSTILE})
    config = results.config.model_copy(update={"subject": subject, "base_model": 'own/"quoted" `model`'})
    for kind in WRITERS:
        text = model_card(results, config, results.rows[0], kind, "ada.safetensors")
        _, header, body = text.split("---\n", 2)
        assert yaml.safe_load(header)["instance_prompt"] == HOSTILE
        snippet = re.search(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
        assert snippet is not None
        strings = {node.value for node in ast.walk(ast.parse(snippet[1])) if isinstance(node, ast.Constant)}
        assert HOSTILE in strings
        if kind in ("lora", "kohya"):
            assert 'own/"quoted" `model`' in strings
        assert len(re.findall(r"^```$", body, re.MULTILINE)) == 2, "the snippet's end and the settings'"


@given(st.text())
def test_inline_code_holds_any_text(text: str) -> None:
    """CommonMark ends it at a run of backticks as long as the first, and only there; Python reads a string back."""
    span = code(text)
    fence = re.match("`+", span)
    assert fence is not None
    runs = [run for run in re.findall("`+", span) if len(run) == len(fence[0])]
    if text.strip():
        assert len(runs) == 2
        assert span.removeprefix(fence[0]).removesuffix(fence[0]).strip() == " ".join(text.split())
    assert ast.literal_eval(quoted(text)) == text
    assert "\n" not in span + quoted(text)
