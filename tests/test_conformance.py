"""The CPU execution computes what is recorded, in every flavour and order, and what GPUs answered."""

import re

import conformance
import kernel_gate
import pytest

GPU_FILES = sorted(conformance.GPU_ANSWERS.glob("*.txt"))


@pytest.fixture(scope="module")
def recorded():
    return conformance.parse(conformance.CPU_ANSWERS.read_text())


def test_cpu_gives_the_recorded_answers(recorded):
    assert conformance.differences(conformance.parse(conformance.cpu_answers()), recorded) == []
    assert len(recorded) > 150


@pytest.mark.parametrize(("order", "completion"), [("reverse", "lazy"), ("random", "random")])
def test_answers_do_not_depend_on_the_schedule(recorded, order, completion):
    answers = conformance.cpu_answers(FASTDL_ORDER=order, FASTDL_COMPLETION=completion)
    assert conformance.differences(conformance.parse(answers), recorded) == []


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["race", "san"])
def test_other_flavours_agree(recorded, flavour):
    assert conformance.differences(conformance.parse(conformance.cpu_answers(flavour)), recorded) == []


@pytest.mark.parametrize("path", GPU_FILES, ids=lambda path: path.stem)
def test_cpu_agrees_with_this_gpu(recorded, path):
    text = path.read_text()
    assert re.match(r"# .+, driver [\d.]+, \d{4}-\d{2}-\d{2}\n", text), "the first line names machine, driver and date"
    assert conformance.differences(recorded, conformance.parse(text), subset=True) == []


def test_comparison_sees_every_kind_of_difference():
    ours = conformance.parse("a b 0000000000000001\nc 0000000000000002\n")
    assert conformance.differences(ours, ours) == []
    assert conformance.differences(ours, {"c": "0000000000000002"}, subset=True) == []
    assert conformance.differences(ours, {"c": "0000000000000002"}) == ["a b: 0000000000000001 here, missing there"]
    assert len(conformance.differences(ours, {"c": "0000000000000003"}, subset=True)) == 1
    assert len(conformance.differences(ours, {"d": "0000000000000003"}, subset=True)) == 1
    with pytest.raises(ValueError, match="no answer"):
        conformance.parse("FAILED: something")


@pytest.mark.slow
@pytest.mark.skipif(kernel_gate.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_the_same_source_compiles_for_gpus(capability):
    assert conformance.build_for(capability).exists()
