"""Reading a LoRA that nobody vouches for: every format that programs write comes out the same, and what is not one is refused in a sentence."""

import io
import json
import stat
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from loophil import lora_file, lora_source
from loophil.errors import ConfigError
from loophil.lora_file import read_lora

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
A = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
B = np.arange(15, dtype=np.float32).reshape(5, 3) / 4
ALPHA = np.array(6.0, dtype=np.float32)
BARE = {"lora_A.weight": A, "lora_B.weight": B}
DIFFUSERS = {f"unet.{MODULE}.{end}": value for end, value in BARE.items()}
PEFT = {f"base_model.model.{MODULE}.{end}": value for end, value in BARE.items()}
FLAT = f"lora_unet_{MODULE.replace('.', '_')}"
FUSED = "lora_unet_double_blocks_0_img_attn_qkv"  # three layers of FLUX in one
KOHYA: dict[str, Any] = {f"{FLAT}.lora_down.weight": A, f"{FLAT}.lora_up.weight": B, f"{FLAT}.alpha": ALPHA}
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["to_q"]}


def diffusers(**config: Any) -> bytes:
    """A diffusers file whose header says this of its LoraConfig."""
    said = {f"unet.{key}": value for key, value in ({"r": 3, "lora_alpha": 6} | config).items()}
    return save(DIFFUSERS, {"lora_adapter_metadata": json.dumps(said)})


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors of any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def flux(a: tuple[int, ...], b: tuple[int, ...]) -> bytes:
    """A fused layer of FLUX in kohya's format, of these shapes."""
    return save({f"{FUSED}.lora_down.weight": np.ones(a, np.float32), f"{FUSED}.lora_up.weight": np.ones(b, np.float32)})


def of_every_rank(count: int) -> tuple[dict[str, Any], bytes]:
    """As many modules, of rank 1, 2, ..: a header and its data, F16."""
    header, at = {}, 0
    for rank in range(1, count + 1):
        for half, shape in (("A", [rank, 1]), ("B", [1, rank])):
            header[f"unet.x{rank}.lora_{half}.weight"] = entry(shape, at, at + 2 * rank, "F16")
            at += 2 * rank
    return header, bytes(at)


def with_alphas(count: int) -> dict[str, Any]:
    """As many modules, of alpha 1, 2, ..."""
    ends = {"lora_down.weight": A, "lora_up.weight": B}
    return {f"lora_unet_x{i}.{end}": value for i in range(1, count + 1) for end, value in (ends | {"alpha": np.array(i, np.float32)}).items()}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED, mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content, compression)
    return buffer.getvalue()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def taken(path: Path) -> lora_file.LoraFile:
    """The LoRA, after what all of these have in common was checked."""
    lora = read_lora(path)
    assert lora.rank == 3
    assert {array.dtype for array in lora.weights.values()} == {np.dtype(np.float32)}
    module = MODULE.replace(".", "_") if lora.kohya else MODULE
    assert lora.weights.keys() == {f"{module}.{end}" for end in BARE}
    for end, value in BARE.items():
        np.testing.assert_array_equal(lora.weights[f"{module}.{end}"], value)
    return lora


# ---- what is taken ----

ONE_FILE = {
    "diffusers": (diffusers(), "unet", 6.0),
    "diffusers without alpha": (save(DIFFUSERS), "unet", None),
    "transformer": (save({key.replace("unet.", "transformer."): value for key, value in DIFFUSERS.items()}), "transformer", None),
    "diffusers before peft": (save({f"unet.{MODULE}.lora.down.weight": A, f"unet.{MODULE}.lora.up.weight": B}), "unet", None),
    "with alphas of its own": (
        save({f"unet.{MODULE}.lora.down.weight": A, f"unet.{MODULE}.lora.up.weight": B, f"unet.{MODULE}.alpha": ALPHA}),
        "unet",
        6.0,
    ),
    "attention processors": (
        save({f"{MODULE.removesuffix('.to_q')}.processor.to_q_lora.{end}.weight": value for end, value in (("down", A), ("up", B))}),
        "",
        None,
    ),
    "kohya": (save(KOHYA), "unet", 6.0),
    "kohya without alpha": (save({key: value for key, value in KOHYA.items() if "alpha" not in key}), "unet", None),
}


@pytest.mark.parametrize(("content", "component", "alpha"), ONE_FILE.values(), ids=list(ONE_FILE))
def test_a_file_in_any_format_gives_its_weights_and_alpha(content: bytes, component: str, alpha: float | None, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(content)
    lora = taken(tmp_path / "mine.safetensors")
    assert (lora.component, lora.alpha, lora.name) == (component, alpha, "mine.safetensors")


def test_the_last_projection_of_an_old_attention_processor_has_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(
        save({"unet.mid.attn1.processor.to_out_lora.down.weight": A, "unet.mid.attn1.processor.to_out_lora.up.weight": B})
    )
    assert set(read_lora(tmp_path / "old.safetensors").weights) == {"mid.attn1.to_out.0.lora_A.weight", "mid.attn1.to_out.0.lora_B.weight"}


def test_peft_s_alpha_is_in_the_config_beside_it(tmp_path: Path) -> None:
    files = {"adapter_model.safetensors": save(PEFT), "adapter_config.json": json.dumps(CONFIG).encode(), "README.md": b"#"}
    assert taken(folder(tmp_path / "peft", files)).alpha == 6
    assert taken(tmp_path / "peft" / "adapter_model.safetensors").alpha == 6
    (tmp_path / "peft.zip").write_bytes(zipped(files))
    assert taken(tmp_path / "peft.zip").alpha == 6
    (tmp_path / "deeper.zip").write_bytes(zipped({f"peft/{name}": content for name, content in files.items()}, zipfile.ZIP_DEFLATED))
    assert taken(tmp_path / "deeper.zip").alpha == 6


def test_a_lora_is_the_same_whatever_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(diffusers())
    files = {"pytorch_lora_weights.safetensors": diffusers(), "README.md": b"#", "other.safetensors": b"not asked for"}
    (tmp_path / "a.zip").write_bytes(zipped(files))
    loras = [taken(path) for path in (tmp_path / "a.safetensors", tmp_path / "a.zip", folder(tmp_path / "a", files))]
    assert len({lora.sha256 for lora in loras}) == 1
    (tmp_path / "b.safetensors").write_bytes(diffusers(lora_alpha=7))
    assert read_lora(tmp_path / "b.safetensors").sha256 != loras[0].sha256


@pytest.mark.parametrize(("dtype", "kind"), [("F16", "<f2"), ("BF16", "<u4")])
def test_half_precision_becomes_float32_to_the_last_bit(dtype: str, kind: str, tmp_path: Path) -> None:
    """Eighths and quarters below 4 are exact in both; a bfloat16 is the upper half of a float32."""
    halves = [(value.view(kind) >> 16).astype("<u2") if dtype == "BF16" else value.astype(kind) for value in (A, B)]
    header = {f"unet.{MODULE}.lora_A.weight": entry([3, 4], 0, 24, dtype), f"unet.{MODULE}.lora_B.weight": entry([5, 3], 24, 54, dtype)}
    (tmp_path / "half.safetensors").write_bytes(raw(header, b"".join(half.tobytes() for half in halves)))
    taken(tmp_path / "half.safetensors")


@pytest.mark.parametrize("config", [{"target_parameters": []}, {"use_bdlora": None, "kasa_config": None}, {"init_lora_weights": "mica"}])
def test_a_config_that_says_nothing_more_is_taken(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(diffusers(**config))
    assert taken(tmp_path / "a.safetensors").alpha == 6


def test_a_convolution_s_lora_keeps_its_shape(tmp_path: Path) -> None:
    (tmp_path / "conv.safetensors").write_bytes(
        save({"unet.conv1.lora_A.weight": np.ones((3, 4, 3, 3), np.float32), "unet.conv1.lora_B.weight": np.ones((5, 3, 1, 1), np.float32)})
    )
    lora = read_lora(tmp_path / "conv.safetensors")
    assert (lora.rank, {array.shape for array in lora.weights.values()}) == (3, {(3, 4, 3, 3), (5, 3, 1, 1)})


# ---- what is refused ----

ONE = {"unet.x.lora_A.weight": entry([1, 1], 0, 4), "unet.x.lora_B.weight": entry([1, 1], 4, 8)}
ENTRY = ONE["unet.x.lora_A.weight"]
EIGHT = bytes(8)
PICKLE = b"\x80\x02}q\x00."
BAD: dict[str, tuple[bytes, str]] = {
    # no .safetensors
    "empty": (b"", "is not a .safetensors file"),
    "text": (b"a LoRA, as good as any" * 9, "is not a .safetensors file"),
    "html": (b"<!DOCTYPE html><title>Sign in</title>", "is not a .safetensors file"),
    "pickle": (PICKLE * 9, "is a pickle, which can run programs"),
    "torch's zip": (zipped({"archive/data.pkl": PICKLE, "archive/data/0": EIGHT}), "is a pickle, which can run programs"),
    # the header
    "endless header": (raw(ONE, EIGHT, length=2**63), "header of 9,223,372,036,854,775,808 bytes is too long"),
    "long header": (raw(ONE, EIGHT, length=5 << 20), "is too long, or the file was cut off"),
    "cut off in the header": (raw(ONE, EIGHT)[:40], "is too long, or the file was cut off"),
    "no JSON": (raw(b"{" + b"x" * 20), "its header is not JSON"),
    "nested JSON": (raw(b'{"a":' * 100_000), "its header is not JSON"),
    "names twice": (raw(b'{"a": {}, "a": {}}      '), "says one name twice"),
    "nothing in it": (raw({"__metadata__": {"a": "b"}}), "holds no weights"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}, **ONE}, EIGHT), "metadata in its header are not text"),
    "300,000 tensors": (raw({f"t{i}": {} for i in range(300_000)}), "too long|more than 4000"),
    "5,000 tensors": (raw({f"t{i}": {} for i in range(5000)}), "5000 tensors, more than 4000"),
    "tensor of text": (raw({**ONE, "unet.x.lora_A.weight": "F32"}, EIGHT), "does not describe 'unet.x.lora_A.weight'"),
    "negative shape": (raw({**ONE, "unet.x.lora_A.weight": entry([-1, -1], 0, 4)}, EIGHT), "does not describe"),
    "huge shape": (raw({**ONE, "unet.x.lora_A.weight": entry([2**40, 1], 0, 4)}, EIGHT), "does not describe"),
    "shape of truth": (raw({**ONE, "unet.x.lora_A.weight": entry([True, 1], 0, 4)}, EIGHT), "does not describe"),
    "one offset": (raw({**ONE, "unet.x.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0]}}, EIGHT), "does not describe"),
    "another shape than bytes": (raw({**ONE, "unet.x.lora_A.weight": entry([2, 1], 0, 4)}, EIGHT), "takes another number of bytes"),
    "overlap": (raw({**ONE, "unet.x.lora_B.weight": entry([1, 1], 0, 4)}, EIGHT), "overlap, or leave a gap"),
    "gap": (raw({**ONE, "unet.x.lora_B.weight": entry([1, 1], 8, 12)}, bytes(12)), "overlap, or leave a gap"),
    "cut off in the data": (raw(ONE, bytes(6)), "cut off, or something was added"),
    "something behind": (raw(ONE, EIGHT + PICKLE), "cut off, or something was added"),
    "whole numbers": (raw({**ONE, "unet.x.lora_A.weight": entry([1, 1], 0, 4, "I32")}, EIGHT), "of type 'I32', and a LoRA is of F32, F16, BF16"),
    "type that is a list": (raw({**ONE, "unet.x.lora_A.weight": {**ENTRY, "dtype": []}}, EIGHT), r"of type \[\], and a LoRA is of F32"),
    "type that is an object": (raw({**ONE, "unet.x.lora_A.weight": {**ENTRY, "dtype": {}}}, EIGHT), "of type {}, and a LoRA is of F32"),
    "endless type": (raw({**ONE, "unet.x.lora_A.weight": entry([1, 1], 0, 4, "x" * 3_900_000)}, EIGHT), "of type 'xxx.*xxx', and a LoRA is of F32"),
    "65 dimensions": (raw({**ONE, "unet.x.lora_A.weight": entry([1] * 65, 0, 4)}, EIGHT), "has 65 dimensions, and no layer's LoRA has more than 4"),
    "345,000 dimensions": (raw({**ONE, "unet.x.lora_A.weight": entry([1 << 29] * 345_000, 0, 4)}, EIGHT), "has 345000 dimensions"),
    "endless name": (raw({**ONE, "x" * 3_900_000: ENTRY}, EIGHT), "a name of 3900000 characters"),
    "metadata beyond Unicode": (raw({"__metadata__": {"lora_adapter_metadata": "\ud800"}, **ONE}, EIGHT), "lora_adapter_metadata .* is not JSON"),
    "float64": (save({key: value.astype(np.float64) for key, value in DIFFUSERS.items()}), "of type 'F64'"),
    # the names
    "a whole model": (save({"model.diffusion_model.input_blocks.0.0.weight": A}), "is not a LoRA's key"),
    "bare names": (save({f"{MODULE}.{end}": value for end, value in BARE.items()}), "is not a LoRA's key"),
    "text encoder of kohya": (save({**KOHYA, "lora_te1_text_model_x.lora_down.weight": A}), "'lora_te1_text.*' is of a text encoder"),
    "text encoder of diffusers": (save({**DIFFUSERS, "text_encoder_2.x.lora_A.weight": A}), "'text_encoder_2.*' is of a text encoder"),
    "DoRA of kohya": (save({**KOHYA, f"{FLAT}.dora_scale": A}), "is of DoRA"),
    "DoRA of peft": (save({**PEFT, f"base_model.model.{MODULE}.lora_magnitude_vector": A}), "is of DoRA"),
    "LoHa": (save({f"{FLAT}.hada_w1_a": A, f"{FLAT}.hada_w1_b": B}), "is of LoHa"),
    "LoKr": (save({f"{FLAT}.lokr_w1": A, f"{FLAT}.lokr_w2": B}), "is of LoKr"),
    "Tucker": (save({**KOHYA, f"{FLAT}.lora_mid.weight": A}), "is of LoCon with a Tucker core"),
    "difference": (save({**KOHYA, "lora_unet_norm.diff": A}), "is of a difference of whole weights"),
    "biases": (save({**DIFFUSERS, f"unet.{MODULE}.lora_B.bias": A}), "is of a LoRA with biases"),
    "two formats": (save({**DIFFUSERS, **KOHYA}), "mixes keys of several kinds: 'lora_unet_', 'unet.'"),
    "one weight twice": (save({**DIFFUSERS, f"unet.{MODULE}.lora.down.weight": A}), "one weight under two names"),
    "alphas alone": (save({f"{FLAT}.alpha": ALPHA}), "several kinds: alphas alone"),
    # the numbers
    "half of a pair": (save({f"unet.{MODULE}.lora_A.weight": A}), "has no other half"),
    "a vector": (save({**DIFFUSERS, f"unet.{MODULE}.lora_A.weight": A[0]}), r"has the shape \(4,\)"),
    "nothing wide": (save({**DIFFUSERS, f"unet.{MODULE}.lora_A.weight": A[:, :0]}), r"has the shape \(3, 0\)"),
    "a vector of FLUX": (flux((4,), (12, 4)), r"has the shape \(4,\)"),
    "a number of FLUX": (flux((4, 4), ()), r"has the shape \(\), and no layer's LoRA has"),
    "nothing wide of FLUX": (flux((4, 0), (0, 4)), r"has the shape \(4, 0\)"),
    "4,000 ranks": (raw(*of_every_rank(2000)), r"different ranks \(1, 2, 3, .* more\)"),
    "two ranks": (save({**DIFFUSERS, "unet.x.lora_A.weight": A[:2], "unet.x.lora_B.weight": B[:, :2]}), r"different ranks \(2, 3\)"),
    "halves of two ranks": (save({**DIFFUSERS, f"unet.{MODULE}.lora_B.weight": B[:, :2]}), r"different ranks \(2, 3\)"),
    "not a number": (save({**DIFFUSERS, f"unet.{MODULE}.lora_B.weight": np.where(B == 1, np.nan, B)}), "is not finite, or larger than 10000"),
    "infinite": (save({**DIFFUSERS, f"unet.{MODULE}.lora_B.weight": np.where(B == 1, -np.inf, B)}), "is not finite"),
    "absurd": (save({**DIFFUSERS, f"unet.{MODULE}.lora_B.weight": B * 1e30}), "larger than 10000"),
    # alpha and what else a config says
    "alpha for some": (save({**KOHYA, "lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B}), "some of its modules have an alpha"),
    "alpha of a stranger": (save({**KOHYA, "lora_unet_x.alpha": ALPHA}), "some of its modules have an alpha"),
    "two alphas": (
        save({**KOHYA, "lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B, "lora_unet_x.alpha": np.array(3, np.float32)}),
        "several alphas: 3, 6",
    ),
    "alpha of two numbers": (save({**KOHYA, f"{FLAT}.alpha": np.ones(2, np.float32)}), "an alpha in it is no number"),
    "alpha 0": (save({**KOHYA, f"{FLAT}.alpha": np.array(0, np.float32)}), "its alpha is 0"),
    "alpha that is text": (diffusers(lora_alpha="6"), "its alpha is '6', which is no number"),
    "alpha that is not a number": (diffusers(lora_alpha=float("nan")), "its alpha is nan"),
    "alpha beyond floats": (diffusers(lora_alpha=10**400), r"its alpha is 1000.*000\."),
    "500 alphas": (save(with_alphas(500)), r"several alphas: 1, 2, 3, .* more\."),
    "another rank": (diffusers(r=4), "says rank 4, and its weights have 3"),
    "rank-stabilised": (diffusers(use_rslora=True), "says use_rslora True"),
    "ranks of its own": (diffusers(rank_pattern={"x": 2}), "says rank_pattern"),
    "endless rank": (diffusers(r=["x" * 100] * 30_000), r"says rank \['xxx.*'\], and its weights have 3"),
    "LoRA-GA": (diffusers(init_lora_weights="lora_ga"), "belongs to a base that was changed for it"),
    "QALoRA": (diffusers(use_qalora=True), "says use_qalora True"),
    "aLoRA": (diffusers(alora_invocation_tokens=[1, 2]), r"says alora_invocation_tokens \[1, 2\]"),
    "BD-LoRA": (diffusers(use_bdlora={"nblocks": 1}), "says use_bdlora {'nblocks': 1}"),
    "KaSA": (diffusers(kasa_config={"beta": 1}), "says kasa_config {'beta': 1}"),
    "Monte Carlo": (diffusers(monteclora_config={}), "says monteclora_config {}"),
    "Arrow": (diffusers(arrow_config={"top_k": 3}), "says arrow_config {'top_k': 3}"),
    "parameters": (diffusers(target_parameters=["x.weight"]), r"says target_parameters \['x.weight'\]"),
    "PiSSA": (diffusers(init_lora_weights="pissa_niter_4"), "belongs to a base that was changed for it"),
    "peft without its config": (save(PEFT), "adapter_config.json is missing"),
    "config that is a list": (save(DIFFUSERS, {"lora_adapter_metadata": "[]"}), "is not a JSON object"),
    # zips
    "damaged zip": (zipped({"a.safetensors": diffusers()})[:-30], "is a damaged zip"),
    "spoiled zip": (zipped({"a.safetensors": diffusers()}).replace(b"lora_alpha", b"lora_alphb"), "is a damaged zip"),
    "empty zip": (zipped({"README.md": b"#"}), "holds no .safetensors file"),
    "two in a zip": (zipped({"a.safetensors": diffusers(), "b.safetensors": diffusers()}), "several .safetensors files"),
    "way out": (zipped({"../a.safetensors": diffusers()}), "'../a.safetensors' leads out of its folder"),
    "way out within": (zipped({"a.safetensors": diffusers(), "x/../../b": b""}), "leads out of its folder"),
    "absolute": (zipped({"/etc/a.safetensors": diffusers()}), "leads out of its folder"),
    "Windows drive": (zipped({"C:a.safetensors": diffusers()}), "leads out of its folder"),
    "Windows way out": (zipped({"..\\a.safetensors": diffusers()}), "leads out of its folder"),
    "link": (zipped({"a.safetensors": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "is a link"),
    "bomb": (zipped({"a.safetensors": bytes(60 << 20)}, zipfile.ZIP_DEFLATED), "grows to 62,914,560 bytes"),
    "bzip2": (zipped({"a.safetensors": diffusers()}, zipfile.ZIP_BZIP2), "'a.safetensors' is not packed as zips usually are"),
    "LZMA": (zipped({"a.safetensors": diffusers()}, zipfile.ZIP_LZMA), "'a.safetensors' is not packed as zips usually are"),
    "endless entry": (zipped({"../" + "x" * 60_000: b""}), r"'\.\./xxx.*xxx' leads out of its folder"),
    "endless pickle": (zipped({"x" * 60_000 + ".bin": b""}), "'xxx.*xxx.bin' is a pickle"),
    "endless damage": (zipped({"x" * 60_000 + ".safetensors": b"x" * 99}).replace(b"x" * 60_000, b"y" * 60_000, 1), "is a damaged zip"),
    "bomb beside": (
        zipped({"adapter_model.safetensors": save(PEFT), "adapter_config.json": b'{"a":[' + b"{}," * (2 << 20) + b"1]}"}, zipfile.ZIP_DEFLATED),
        "adapter_config.json' is larger than 4 MB",
    ),
    "many files": (zipped({f"{i}.safetensors": b"" for i in range(1001)}), "holds 1001 files, more than 1000"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD.values(), ids=list(BAD))
def test_what_is_no_lora_is_refused_in_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=rf"^The LoRA .*bad\.safetensors cannot be used: .*{sentence}") as told:
            read_lora(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000  # a sentence, whatever it quotes
    assert time.monotonic() - began < 10  # RELIABILITY F33's 2 s, with room for a machine that is busy and traced
    assert list(tmp_path.iterdir()) == [path]


def encrypted() -> bytes:
    """A zip whose entry says that it has a password: bit 0 of the flags, which stand at 6 in the entry and at 8 in the directory."""
    content = bytearray(zipped({"a.safetensors": diffusers()}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def twice() -> bytes:
    return zipped({"a.safetensors": diffusers(), "b.safetensors": diffusers()}).replace(b"b.safetensors", b"a.safetensors")


def lying() -> bytes:
    """400 MB of zeros in a zip whose directory says 1000 bytes: the size stands at 24 in it."""
    buffer, entry = io.BytesIO(), zipfile.ZipInfo("a.safetensors")
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w") as archive, archive.open(entry, "w") as file:
        for _ in range(100):
            file.write(bytes(4 << 20))
    content = bytearray(buffer.getvalue())
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 1000)
    return bytes(content)


def growing() -> bytes:
    """A small zip whose directory says that 400 MB are packed in it, and grow to as many: these sizes stand at 20 and 24 in it."""
    content = bytearray(zipped({"a.safetensors": bytes(1000)}))
    at = content.rindex(b"PK\x01\x02") + 20
    content[at : at + 8] = struct.pack("<II", 400 << 20, 400 << 20)
    return bytes(content)


def crowded() -> bytes:
    """A directory of 1.5 MB, all of nothing, that says it is of one file: the counts stand at 8 and 10 in its end."""
    content = bytearray(zipped({f"{i:05}": b"" for i in range(30_000)}))
    at = content.rindex(b"PK\x05\x06") + 8
    content[at : at + 4] = struct.pack("<HH", 1, 1)
    return bytes(content)


BUILT = [
    (encrypted, "is encrypted"),
    (twice, "two files of one name"),
    (lying, "is a damaged zip"),
    (growing, "grows to 419,430,400 bytes"),
    (crowded, "its directory is larger than 1 MB"),
]


@pytest.mark.parametrize(("build", "sentence"), BUILT)
def test_zips_that_no_writer_of_loras_makes_are_refused(build: Callable[[], bytes], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(build())
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=sentence):
            read_lora(tmp_path / "a.zip")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no .safetensors file"),
        ({"pytorch_lora_weights.bin": PICKLE}, "pytorch_lora_weights.bin' is a pickle"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "several .safetensors files"),
        ({"adapter_model.safetensors": save(PEFT), "adapter_config.json": b"{}" * 2}, "adapter_config.json is not JSON"),
        ({"adapter_model.safetensors": save(PEFT), "adapter_config.json": b'{"peft_type": "LOHA"}'}, "says peft_type 'LOHA'"),
        ({"adapter_model.safetensors": save(PEFT), "adapter_config.json": b" " * (5 << 20)}, "is larger than 4 MB"),
    ],
)
def test_a_folder_without_one_lora_is_refused(files: dict[str, bytes], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_lora(folder(tmp_path / "folder", files))


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_source, "MOST_BYTES", 1 << 20)
    (tmp_path / "large.safetensors").write_bytes(bytes(3 << 20))
    (tmp_path / "large.zip").write_bytes(zipped({"a.safetensors": diffusers(), "b": bytes(1 << 20), "c": bytes(1 << 20)}))
    for name in ("large.safetensors", "large.zip"):
        with pytest.raises(ConfigError, match=rf"{name} is larger than 1 MB, which no LoRA is"):
            read_lora(tmp_path / name)


@pytest.mark.parametrize("error", [TypeError, ValueError, OverflowError, IndexError, KeyError, UnicodeError, RecursionError])
def test_what_nobody_thought_of_is_refused_in_a_sentence_too(error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: Any) -> None:
        raise error("x" * 4000)

    (tmp_path / "a.safetensors").write_bytes(diffusers())
    monkeypatch.setattr(lora_file, "_rank", stumble)
    with pytest.raises(ConfigError, match=rf"a\.safetensors cannot be used: it is malformed \({error.__name__}\)") as told:
        read_lora(tmp_path / "a.safetensors")
    assert isinstance(told.value.__cause__, error)


@pytest.mark.parametrize("name", ["none.safetensors", "deeper/none.safetensors"])
def test_a_file_that_is_not_there_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not there\. Give a file that is by --lora FILE"):
        read_lora(tmp_path / name)


def test_what_is_no_file_is_refused_and_not_waited_for() -> None:
    with pytest.raises(ConfigError, match="is neither a file nor a folder"):
        read_lora(Path("/dev/zero"))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.safetensors").write_bytes(diffusers())
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"a\.safetensors cannot be read \(Permission denied\)"):
        read_lora(tmp_path / "a.safetensors")
