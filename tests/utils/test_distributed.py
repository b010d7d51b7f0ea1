"""Devices and launchers: what does not work together is said in one sentence."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from pertinence import PertinenceError
from pertinence.utils import distributed as accelerators
from pertinence.utils.distributed import make_accelerator, one_thread, quiet_other_processes


@pytest.fixture
def gpus(monkeypatch) -> None:
    """Makes torch speak of two GPUs that are not there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "")  # so that what is set here is undone
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")


def test_the_cpu_may_be_asked_for_again_and_again():
    assert {str(make_accelerator(device).device) for device in ("cpu", None, "cpu", "cpu:0")} == {"cpu"}


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_another_device_than_before_is_refused(gpus, device):
    make_accelerator("cpu")
    with pytest.raises(PertinenceError, match=f"has used cpu before, .* start another process for {device}"):
        make_accelerator(device)
    assert make_accelerator().device.type == "cpu"


@pytest.mark.parametrize(("used", "device"), [("cuda", "cpu"), ("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_a_gpu_that_was_used_stays(gpus, monkeypatch, used, device):
    def make(cpu: bool) -> Accelerator:
        if cpu:
            raise ValueError("AcceleratorState has already been initialized")
        return accelerator

    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerators, "Accelerator", make)
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", torch.device(used))
    with pytest.raises(PertinenceError, match=f"has used {used} before, .* start another process for {device}"):
        make_accelerator(device)


@pytest.mark.parametrize("launcher", accelerators.LAUNCHERS)
def test_processes_that_do_not_find_each_other_are_refused(monkeypatch, launcher):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(accelerators.LAUNCHERS[launcher], "4")
    with pytest.raises(PertinenceError, match=f"{launcher} started 4 processes .* with torchrun"):
        make_accelerator("cpu")
    monkeypatch.setenv(accelerators.LAUNCHERS[launcher], "1")
    make_accelerator("cpu")


def test_only_the_first_process_warns(monkeypatch, caplog):
    logger = logging.getLogger("pertinence")
    monkeypatch.setattr(logger, "level", logger.level)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        quiet_other_processes()
        logging.getLogger("pertinence.search.search").warning(f"by {rank}")
    assert [record.message for record in caplog.records] == ["by 0"]
    logger.setLevel(logging.NOTSET)  # which also forgets what is cached


def test_a_shell_in_an_allocation_of_several_tasks_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert make_accelerator("cpu").num_processes == 1


def test_launcher_that_starts_one_process_on_the_cpu_is_called_out_beside_a_gpu(gpus, monkeypatch, caplog):
    make_accelerator("cpu")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    make_accelerator("cpu")
    assert "accelerate launch has started a single process" in caplog.text


def test_the_threads_there_were_come_back_whoever_ends_first():
    """Every thread of Python has its own number."""
    entered, left = threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)

    def work(is_first: bool) -> list[int]:
        torch.set_num_threads(3)
        entered.wait()
        with one_thread():
            entered.wait()
            inside = torch.get_num_threads()
            if not is_first:
                left.wait()
        after = torch.get_num_threads()
        if is_first:
            left.wait()
        return [inside, after]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [True, False])) == [[1, 3], [1, 3]]
