"""The launch files under examples/launch: what accelerate makes of them, and the examples started by several processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers.reviews import write_reviews

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "launch").glob("*.yaml"))
TINY = "--max_steps 6 --max_train_samples 90 --max_test_samples 40 --per_device_train_batch_size 8 --use_cpu true".split()
SCRIPTS = {
    "image_classification": ["examples/digits_blend.yaml"],
    "adversarial_training": ["--dataset", "digits", "--attacks_during", "pgd-2", "--attacks_final", "pgd-2"],
    "text_classification": ["--method", "prl", "--model", "small-bert"],
}
#: What each prints once, however many train.
ONCE = {
    "image_classification": "eval_clean_accuracy",
    "adversarial_training": "best by held-out  ",
    "text_classification": "written: ",
}


def read(name, *words):
    """The arguments of ``accelerate launch`` with the file, as accelerate checks them, the file's entries among them."""
    file = str(ROOT / f"examples/launch/{name}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", file, *words, "script.py"])
    return _validate_launch_command(arguments)[0]


def test_every_file_is_read_and_starts_one_process_a_device():
    assert [path.stem for path in FILES] == ["ddp", "deepspeed", "fsdp2"]
    for path in FILES:
        found = read(path.stem)
        assert (found.num_processes, found.num_machines, found.mixed_precision) == (2, 1, "no"), path
        assert read(path.stem, "--num_processes", "8").num_processes == 8


def test_the_files_ask_for_what_they_say(monkeypatch):
    kinds = {name: (f.multi_gpu, f.use_fsdp, f.use_deepspeed) for name in ("ddp", "fsdp2", "deepspeed") if (f := read(name))}
    assert kinds == {"ddp": (True, False, False), "fsdp2": (False, True, False), "deepspeed": (False, False, True)}
    environment = prepare_multi_gpu_env(read("fsdp2"))
    expected = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true",
    }  # fmt: skip
    assert {name: environment[name] for name in expected} == expected
    deepspeed = read("deepspeed")
    assert (deepspeed.zero_stage, deepspeed.gradient_accumulation_steps, deepspeed.gradient_clipping) == (2, "auto", "auto")


def test_the_lines_in_files_and_guide_name_what_is_there():
    guide = (ROOT / "docs/guides/distributed_and_resume.md").read_text()
    named = re.findall(r"examples/[\w/.]+", "".join([guide, *(path.read_text() for path in FILES)]))
    assert len(named) >= 6 and all((ROOT / name).exists() for name in named), named


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        ["accelerate.commands.launch", "--config_file", "examples/launch/ddp.yaml"],
    ],
    ids=["torchrun", "accelerate"],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_are_trained_by_two_processes(tmp_path, start, script):
    """The model is saved, and what one process tells is told once."""
    words = [*SCRIPTS[script], *TINY, "--output_dir", str(tmp_path / "run")]
    if script == "text_classification":
        words += ["--dataset", write_reviews(tmp_path / "reviews.csv")]
    line = [sys.executable, "-m", *start, f"examples/{script}.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert done.stdout.count(ONCE[script]) == 1, done.stdout[-3000:]
