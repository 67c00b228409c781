"""Exports: other programs' own loaders draw the very pictures of the live adapter, the facts are in the file, and nothing half-written shows."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import sys
import tempfile
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loophil.errors import InvalidInput
from loophil.export import FORMATS, STAGING, export
from loophil.model_card import Adapter, BeforeAfter
from tests.tiny import random_lora, tiny_pipeline

RANK, ALPHA = 3, 7.5
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (
    *ATTENTION,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "conv",
    "time_emb_proj",
)
CANARY = "kanarienvogel"


def draw(pipeline: Any) -> np.ndarray[Any, Any]:
    """(2, 16, 16, 3) in 0..1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        result = pipeline(
            "a red dot", num_images_per_prompt=2, num_inference_steps=3, guidance_scale=3.0, eta=1.0, generator=generator, output_type="np"
        )
    return np.asarray(result.images)


def adapter_of(weights: dict[str, torch.Tensor], targets: tuple[str, ...] = ATTENTION, **facts: Any) -> Adapter:
    given: dict[str, Any] = {"base_model": "some-org/tiny-sd", "revision": "abc123", "version": 7, "ratings": 128, "run": "first"} | facts
    return Adapter(weights=weights, rank=RANK, alpha=ALPHA, targets=targets, **given)


@pytest.fixture
def small() -> Adapter:
    """One module, enough for what is not about pictures."""
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return adapter_of({f"{module}.lora_A.weight": torch.randn(RANK, 8), f"{module}.lora_B.weight": torch.randn(8, RANK)})


@pytest.fixture
def pictures() -> list[BeforeAfter]:
    return [
        BeforeAfter("a red *dot*\n| <b>", 11, Image.new("RGB", (16, 16), "red"), Image.new("RGB", (600, 300), "blue")),
        BeforeAfter("two stars", 12, Image.new("RGBA", (16, 16)), Image.new("RGB", (16, 16), "navy")),
    ]


@pytest.fixture(scope="module", params=[ATTENTION, EVERYTHING], ids=["attention", "attention+conv"])
def tuned(request: pytest.FixtureRequest) -> tuple[Adapter, np.ndarray[Any, Any]]:
    """A LoRA that is plainly at work in the pipeline's own UNet, and the pictures drawn with it."""
    pipeline = tiny_pipeline()
    before = draw(pipeline)
    weights = random_lora(pipeline.unet, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(request.param)))
    after = draw(pipeline)
    assert np.abs(after - before).max() > 0.02  # else the comparisons below could not fail
    return adapter_of(weights, request.param), after


def unzip(archive: Path) -> Path:
    folder = archive.with_suffix("")
    folder = folder.with_name(folder.name + "-unzipped")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def weights_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


# Other programs draw the same pictures


def test_diffusers_draws_the_same_pictures_from_the_folder(tuned: Any, tmp_path: Path) -> None:
    adapter, expected = tuned
    folder = unzip(export(adapter, "diffusers", tmp_path))
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(folder, use_safetensors=True)
    np.testing.assert_allclose(draw(pipeline), expected, rtol=0, atol=1e-5)


def test_peft_draws_the_same_pictures_from_the_folder(tuned: Any, tmp_path: Path) -> None:
    adapter, expected = tuned
    for base in (adapter.base_model, "/models/my base"):
        folder = unzip(export(dataclasses.replace(adapter, base_model=base), "peft", tmp_path))
        pipeline = tiny_pipeline()
        pipeline.unet = PeftModel.from_pretrained(pipeline.unet, folder)
        np.testing.assert_allclose(draw(pipeline), expected, rtol=0, atol=1e-5)


def test_kohya_file_draws_the_same_pictures(tuned: Any, tmp_path: Path) -> None:
    adapter, expected = tuned
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(export(adapter, "kohya", tmp_path))
    np.testing.assert_allclose(draw(pipeline), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "base", ["/models/my base", "/home/me/gpt2", "dreamshaper_8.safetensors", "gpt2", "loophil-embedded", "mine/tiny", "a/b/c", "some-org/tiny-sd"]
)
def test_a_base_that_is_not_from_the_hub_is_no_hub_id_anywhere(base: str, small: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = unzip(export(dataclasses.replace(small, base_model=base), "peft", tmp_path))
    said = json.loads((made / "adapter_config.json").read_text())
    known = (base, base, "abc123") if base == "some-org/tiny-sd" else (None, None, None)
    assert (front_matter((made / "README.md").read_text()).get("base_model"), said["base_model_name_or_path"], said["revision"]) == known


def test_every_module_is_in_the_kohya_file_with_its_alpha(tuned: Any, tmp_path: Path) -> None:
    adapter, _ = tuned
    tensors = load_file(export(adapter, "kohya", tmp_path))
    names = {key.split(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(names) == 3 * len(adapter.weights) // 2  # down, up and alpha of each; A and B of each
    for name in names:
        assert re.fullmatch(r"lora_unet_\w+", name)
        assert tensors[f"{name}.alpha"].item() == ALPHA
        assert tensors[f"{name}.lora_down.weight"].shape[0] == RANK == tensors[f"{name}.lora_up.weight"].shape[1]


# What is in the files


@pytest.mark.parametrize("format", FORMATS)
def test_facts_and_true_alpha_are_in_every_header(format: str, small: Adapter, tmp_path: Path) -> None:
    adapter = dataclasses.replace(small, trigger="in my style", licence="apache-2.0", resolution=64, created=86400.0)
    export(adapter, format, tmp_path)
    facts = header(weights_file(tmp_path / f"first-v7-{format}"))
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "first v7",
        "modelspec.trigger_phrase": "in my style",
        "modelspec.license": "apache-2.0",
        "modelspec.resolution": "64x64",
        "modelspec.date": "1970-01-02T00:00:00+00:00",
        "loophil.base_model": "some-org/tiny-sd",
        "loophil.revision": "abc123",
        "loophil.rank": "3",
        "loophil.alpha": "7.5",
        "loophil.version": "7",
        "loophil.ratings": "128",
    }
    assert {key: facts.get(key) for key in expected} == expected


def test_diffusers_header_keeps_alpha(small: Adapter, tmp_path: Path) -> None:
    export(small, "diffusers", tmp_path)
    path = tmp_path / "first-v7-diffusers" / "pytorch_lora_weights.safetensors"
    config = json.loads(header(path)["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"], config["unet.target_modules"]) == (3, 7.5, sorted(ATTENTION))
    assert set(load_file(path)) == {f"unet.{key}" for key in small.weights}


def test_peft_config_keeps_alpha_base_and_revision(small: Adapter, tmp_path: Path) -> None:
    export(small, "peft", tmp_path)
    config = json.loads((tmp_path / "first-v7-peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"], config["revision"]) == (3, 7.5, "some-org/tiny-sd", "abc123")


@pytest.mark.parametrize(
    ("architecture", "base", "v2"),
    [
        ("stable-diffusion-v1", "sd_v1", "False"),
        ("stable-diffusion-v2-768-v", "sd_v2_v", "True"),
        ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "False"),
    ],
)
def test_kohya_header_tells_the_family(architecture: str, base: str, v2: str, small: Adapter, tmp_path: Path) -> None:
    facts = header(export(dataclasses.replace(small, architecture=architecture), "kohya", tmp_path))
    assert (facts["ss_base_model_version"], facts["ss_v2"], facts["ss_network_module"]) == (base, v2, "networks.lora")
    assert (facts["ss_network_dim"], facts["ss_network_alpha"]) == ("3", "7.5")


def test_hash_in_the_header_is_that_of_the_data(small: Adapter, tmp_path: Path) -> None:
    path = export(small, "kohya", tmp_path)
    raw = path.read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert header(path)["modelspec.hash_sha256"] == f"0x{digest}"
    assert header(path)["sshs_model_hash"] == digest


@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_float32_whatever_they_come_as(format: str, small: Adapter, tmp_path: Path) -> None:
    flat = torch.arange(2 * 8 * RANK).to(torch.bfloat16)  # both halves are views of it, one of them transposed
    a, b = flat[: 8 * RANK].view(8, RANK).T, flat[8 * RANK :].view(8, RANK)
    export(dataclasses.replace(small, weights=dict(zip(small.weights, (a, b), strict=True))), format, tmp_path)
    tensors = load_file(weights_file(tmp_path / f"first-v7-{format}"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    found = {tuple(t.shape): t for t in tensors.values()}
    assert torch.equal(found[RANK, 8], a.float())
    assert torch.equal(found[8, RANK], b.float())


def test_a_transformer_gets_its_own_prefix(small: Adapter, tmp_path: Path) -> None:
    export(dataclasses.replace(small, component="transformer"), "diffusers", tmp_path)
    path = tmp_path / "first-v7-diffusers" / "pytorch_lora_weights.safetensors"
    assert all(key.startswith("transformer.down") for key in load_file(path))
    assert json.loads(header(path)["lora_adapter_metadata"])["transformer.lora_alpha"] == 7.5


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_version_gives_the_same_bytes(format: str, small: Adapter, pictures: list[BeforeAfter], tmp_path: Path) -> None:
    one, two = (export(small, format, tmp_path / side, pictures=pictures) for side in "ab")
    assert one.read_bytes() == two.read_bytes()


# The card


def front_matter(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_card_front_matter_is_what_the_hub_reads(format: str, small: Adapter, pictures: list[BeforeAfter], tmp_path: Path) -> None:
    export(dataclasses.replace(small, trigger="in my style: 'x'", licence="apache-2.0"), format, tmp_path, pictures=pictures)
    folder = tmp_path / f"first-v7-{format}"
    front = front_matter((folder / "README.md").read_text())
    assert front["base_model"] == "some-org/tiny-sd"
    assert front["library_name"] == ("peft" if format == "peft" else "diffusers")
    assert (front["license"], front["pipeline_tag"], front["instance_prompt"]) == ("apache-2.0", "text-to-image", "in my style: 'x'")
    assert {"text-to-image", "lora", "template:sd-lora"} <= set(front["tags"])
    assert [entry["text"] for entry in front["widget"]] == [p.prompt for p in pictures]
    assert all((folder / entry["output"]["url"]).is_file() for entry in front["widget"])


def test_card_tells_what_was_measured(small: Adapter, tmp_path: Path) -> None:
    adapter = dataclasses.replace(small, raters=2, updates=31, rewards={"human:ada": 1.0, "jpeg": 0.25}, win_rate=(0.81, 0.74, 0.87))
    export(adapter, "diffusers", tmp_path)
    card = (tmp_path / "first-v7-diffusers" / "README.md").read_text()
    for fact in (
        "128 rated images, raters: 2",
        "7, after 31 updates",
        "human 1, jpeg 0.25",
        "81% of blind pairs (74% to 87%)",
        "rank 3, alpha 7.5",
        "= 2.5)",
    ):
        assert fact in card


def test_card_without_measurements_claims_none(small: Adapter, tmp_path: Path) -> None:
    export(small, "diffusers", tmp_path)
    card = (tmp_path / "first-v7-diffusers" / "README.md").read_text()
    assert not re.search(r"raters|updates|reward mix|blind pairs|Before and after|Gallery|None", card)
    assert not {"widget", "instance_prompt"} & set(front_matter(card))


@pytest.mark.parametrize("format", FORMATS)
def test_card_says_how_each_program_loads_it(format: str, small: Adapter, tmp_path: Path) -> None:
    export(small, format, tmp_path)
    card = (tmp_path / f"first-v7-{format}" / "README.md").read_text()
    rows = dict(re.findall(r"^\| (diffusers|ComfyUI|A1111|peft) \| (.+) \|$", card, re.MULTILINE))
    expected = {
        "diffusers": {
            "diffusers": '`pipe.load_lora_weights("FOLDER")`',
            "peft": "export this version as diffusers",
            "kohya": '`pipe.load_lora_weights("FOLDER", weight_name="first-v7-kohya.safetensors")`',
        },
        "A1111": {
            "diffusers": "export this version as kohya",
            "peft": "export this version as kohya",
            "kohya": "copy `first-v7-kohya.safetensors` to `models/Lora`, and write `<lora:first-v7-kohya:1>` into the prompt",
        },
        "peft": {
            "diffusers": "export this version as peft",
            "peft": '`PeftModel.from_pretrained(pipe.unet, "FOLDER")`',
            "kohya": "export this version as peft",
        },
    }
    assert {program: rows[program] for program in expected} == {program: rows_of[format] for program, rows_of in expected.items()}
    assert ("models/loras" in rows["ComfyUI"]) == (format == "kohya")


def test_pictures_stand_beside_the_card_and_as_thumbnail(small: Adapter, pictures: list[BeforeAfter], tmp_path: Path) -> None:
    path = export(small, "kohya", tmp_path, pictures=pictures)
    card = (path.parent / "README.md").read_text()
    assert "| 11 | ![base](images/base_0.png) | ![tuned](images/tuned_0.png) |" in card
    assert Image.open(path.parent / "images" / "base_0.png").getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(path.parent / "images" / "tuned_1.png").getpixel((0, 0)) == (0, 0, 128)
    kind, data = header(path)["modelspec.thumbnail"].split(",")
    assert (kind, Image.open(io.BytesIO(base64.b64decode(data))).size) == ("data:image/jpeg;base64", (256, 128))  # 600x300 shrunk


def test_user_text_does_nothing_in_the_card(small: Adapter, pictures: list[BeforeAfter], tmp_path: Path) -> None:
    export(small, "diffusers", tmp_path, pictures=pictures)
    body = (tmp_path / "first-v7-diffusers" / "README.md").read_text().split("---\n", 2)[2]
    assert r"| a red \*dot\* \| \<b\> | 11 |" in body


# What must not be in the files


@pytest.mark.parametrize("format", FORMATS)
def test_no_path_and_no_rater_leaks(format: str, small: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_{CANARY}")
    home = tmp_path / CANARY
    (home / "models" / "mine").mkdir(parents=True)
    picture = Image.new("RGB", (8, 8))
    picture.info |= {"comment": CANARY, "icc_profile": CANARY.encode(), "exif": CANARY.encode(), "Software": CANARY}
    adapter = dataclasses.replace(
        small,
        base_model=str(home / "models" / "mine"),
        rewards={f"human:{CANARY}": 1.0, f"{home}/taste.py:blue": 0.5, f"C:\\{CANARY}\\t.py:red": 0.5},
    )
    archive = export(adapter, format, home / "exports", pictures=[BeforeAfter("a dot", 1, picture, picture)])
    files = [archive, *(path for path in (home / "exports" / f"first-v7-{format}").rglob("*") if path.is_file())]
    assert len(files) >= 5
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []
    thumbnail = header(weights_file(home / "exports" / f"first-v7-{format}"))["modelspec.thumbnail"].split(",")[1]
    encoded = [path.read_bytes() for path in files if path.suffix == ".png"] + [base64.b64decode(thumbnail)]
    assert len(encoded) == 3
    assert [Image.open(io.BytesIO(image)).info.keys() & picture.info.keys() for image in encoded] == [set()] * 3  # a profile is compressed
    card = (home / "exports" / f"first-v7-{format}" / "README.md").read_text()
    assert "| base model | mine, revision abc123 |" in card
    assert "human 1, taste.py:blue 0.5, t.py:red 0.5" in card


@pytest.mark.parametrize(
    ("base_model", "written"),
    [
        ("some-org/tiny-sd", "some-org/tiny-sd"),
        ("embedded", "embedded"),
        ("models/mine", "mine"),  # a folder that is there is no Hub id
        ("./mine/", "mine"),
        ("~/models/mine", "mine"),
        (r"C:\Users\ada\mine", "mine"),
        ("/", "base"),
    ],
)
def test_a_hub_id_stays_and_of_a_path_only_the_last_part(
    base_model: str, written: str, small: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = export(dataclasses.replace(small, base_model=base_model), "kohya", tmp_path)
    assert header(path)["loophil.base_model"] == header(path)["ss_sd_model_name"] == written


# What is refused


def test_unknown_format_lists_the_known_ones(small: Adapter, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'pickle'.*diffusers, peft, kohya"):
        export(small, "pickle", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", ["../x", "a/b", "", ".hidden", "x" * 65, "First"])
def test_a_run_name_that_is_no_file_name_is_refused(run: str, small: Adapter, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot name a file"):
        export(dataclasses.replace(small, run=run), "kohya", tmp_path)


@pytest.mark.parametrize("text", ["a\nb", "\ud800", "\x1b[1m"])
@pytest.mark.parametrize("fact", ["trigger", "licence"])
def test_unprintable_text_is_refused(fact: str, text: str, small: Adapter, tmp_path: Path) -> None:
    changed: dict[str, Any] = {fact: text}
    with pytest.raises(InvalidInput, match="unprintable"):
        export(dataclasses.replace(small, **changed), "kohya", tmp_path)


def test_a_kohya_file_of_sd3_is_refused_with_what_its_programs_read(small: Adapter, tmp_path: Path) -> None:
    sd3 = dataclasses.replace(small, component="transformer", architecture="stable-diffusion-3")
    with pytest.raises(
        InvalidInput, match=r"^Of SD3 diffusers reads no kohya names: choose the diffusers format, which ComfyUI reads, too, at strength 2\.5\.$"
    ):
        export(sd3, "kohya", tmp_path)
    card = export(sd3, "diffusers", tmp_path).with_suffix("").joinpath("README.md").read_text()
    assert "| ComfyUI | copy `pytorch_lora_weights.safetensors` to `models/loras`, and put a Load LoRA node of strength 2.5 behind" in card
    assert "| A1111 | no format that it takes whole |" in card


def test_a_version_without_weights_is_refused(small: Adapter, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"Version 7 has no LoRA weights"):
        export(dataclasses.replace(small, weights={}), "diffusers", tmp_path)


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        ("a.to_q.default.weight", (RANK, 8), "is not a LoRA weight"),
        ("a.to_k.lora_A.weight", (RANK, 8), "has no other half"),
        ("a.to_q.lora_A.weight", (RANK + 1, 8), "does not fit rank 3"),
        ("a.to_q.lora_B.weight", (8, RANK + 1), "does not fit rank 3"),
        ("a.to_q.lora_A.weight", (RANK,), "does not fit rank 3"),
    ],
)
def test_weights_that_no_program_could_load_are_refused(key: str, shape: tuple[int, ...], sentence: str, tmp_path: Path) -> None:
    weights = {"a.to_q.lora_A.weight": torch.ones(RANK, 8), "a.to_q.lora_B.weight": torch.ones(8, RANK)} | {key: torch.ones(shape)}
    with pytest.raises(InvalidInput, match=sentence):
        export(adapter_of(weights), "diffusers", tmp_path)


def test_a_module_outside_the_targets_is_refused(small: Adapter, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not among the targets to_v"):
        export(dataclasses.replace(small, targets=("to_v",)), "diffusers", tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, small: Adapter, tmp_path: Path) -> None:
    weights = dict(small.weights)
    next(iter(weights.values()))[0, 0] = value
    with pytest.raises(InvalidInput, match="version 7 is not finite"):
        export(dataclasses.replace(small, weights=weights), "diffusers", tmp_path)
    assert list(tmp_path.iterdir()) == []


# Complete or not at all


def shown(folder: Path) -> dict[str, bytes]:
    """Everything a visitor of the folder sees."""
    files = (path for path in folder.rglob("*") if path.is_file() and STAGING not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def staged(folder: Path) -> list[str]:
    return [path.name for path in (folder / STAGING).iterdir() if path.name != "lock"]


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdtemp"])
def test_an_error_in_the_middle_leaves_nothing(call: str, small: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile if call == "mkdtemp" else os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            export(small, "diffusers", tmp_path)
    assert shown(tmp_path) == {}
    assert staged(tmp_path) == []
    assert export(small, "diffusers", tmp_path).is_file()


def test_a_disk_that_forgets_is_noticed(small: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None if os.path.isdir(f"/proc/self/fd/{handle}") else os.truncate(handle, 10))
    with pytest.raises(OSError, match="did not read back as written"):
        export(small, "diffusers", tmp_path)
    assert shown(tmp_path) == {}


def killed_at(line: int, adapter: Adapter, to: Path, functions: tuple[str, ...]) -> bool:
    """Export in a child that is killed before the n-th line it runs in these functions; False = it came through."""
    child = os.fork()
    if child == 0:
        try:
            _kill_self_at(line, functions)
            export(adapter, "diffusers", to)
            os._exit(0)
        finally:  # an error must not carry on with the tests in the child
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def _kill_self_at(line: int, functions: tuple[str, ...]) -> None:
    counted = iter(range(1, line))

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_name not in functions:
            return None
        if event == "line" and next(counted, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def in_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "/" in name}


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")


@FORKS
def test_a_kill_while_writing_shows_nothing(small: Adapter, tmp_path: Path) -> None:
    for line in range(1, 1000, 3):
        if not killed_at(line, small, tmp_path, ("_write",)):
            break
        assert shown(tmp_path) == {}
    assert line > 30
    assert {name.split("/")[-1] for name in shown(tmp_path)} == {"README.md", "pytorch_lora_weights.safetensors", "first-v7-diffusers.zip"}
    assert staged(tmp_path) == []  # what the killed ones left is gone


@FORKS
def test_a_kill_while_publishing_shows_each_file_whole_old_or_new(small: Adapter, tmp_path: Path) -> None:
    renewed, to, states = dataclasses.replace(small, trigger="in my style"), tmp_path / "out", []
    for line in range(1, 1000):
        export(small, "diffusers", to)
        old = shown(to)
        killed = killed_at(line, renewed, to, ("_publish",))
        states.append(shown(to))
        if not killed:
            break
    new, archive = states[-1], "first-v7-diffusers.zip"
    assert states[0] == old != new
    for state in states:
        assert in_folder(state) in (in_folder(old), in_folder(new), {})
        assert state[archive] in (old[archive], new[archive])
    assert {**in_folder(new), archive: old[archive]} in states  # it was killed between the two as well


def test_the_same_export_again_leaves_files_that_are_being_read(small: Adapter, tmp_path: Path) -> None:
    path = export(small, "kohya", tmp_path)
    before = path.stat()
    assert export(small, "kohya", tmp_path) == path
    assert path.stat().st_ino == before.st_ino
    export(dataclasses.replace(small, trigger="in my style"), "kohya", tmp_path)
    assert header(path)["modelspec.trigger_phrase"] == "in my style"
    assert staged(tmp_path) == []
