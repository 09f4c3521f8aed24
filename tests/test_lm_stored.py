"""A GGUF file is opened and generated from without torch; the torch module is made when it is asked for."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bimo import LM, Engine, EngineSettings, Tokenizer, load
from bimo.engine.kernels.library import instruction_sets
from bimo.model.packed import twin, unpack
from bimo.model.stored import StoredModel

native = pytest.mark.skipif(not instruction_sets(), reason="the kernels were not compiled")
GREEDY = {"max_tokens": 12, "temperature": 0}
PROGRAM = """
import sys, bimo
lm = bimo.load({path!r})
whole = lm.generate("the cat", max_tokens=8, temperature=0)
pieces = "".join(lm.stream("the cat", max_tokens=8, temperature=0))
drawn = lm.generate("the cat", max_tokens=8, seed=1, top_p=0.9)
scored = bimo.Engine(lm).score(["the cat sat"])[0].total
{more}
assert 'torch' not in sys.modules, 'torch was loaded'
print(whole == pieces)
"""


@pytest.fixture(scope="module", params=["F32", "F16", "Q8_0"])
def path(request: pytest.FixtureRequest, lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm.export(tmp_path_factory.mktemp("gguf") / "model.gguf", request.param)


def ran(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@native
def test_opening_generating_and_scoring_load_no_torch(path: Path) -> None:
    done = ran(PROGRAM.format(path=str(path), more=""))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True", "streamed in pieces, the same text"
    control = ran(PROGRAM.format(path=str(path), more="lm.model"))
    assert "torch was loaded" in control.stderr, "the control must be caught"


@native
def test_the_text_is_that_of_the_torch_module_natively_and_in_torch(path: Path) -> None:
    lazy, built = load(path), load(path)
    assert isinstance(lazy.stored, StoredModel), "nobody has asked for the module"
    expected = Engine(built.model, built.tokenizer, EngineSettings(backend="native")).complete("the cat").text
    assert built.stored is None, "it may be changed now"
    assert built.generate("the cat", **GREEDY) == lazy.generate("the cat", **GREEDY)
    lazy.engine_settings = EngineSettings(backend="torch")
    assert lazy.generate("the cat", **GREEDY) == built.generate("the cat", **GREEDY), "and in torch"
    assert expected, "there is text"


@native
def test_an_engine_stays_while_weights_do_and_goes_when_they_change(path: Path) -> None:
    lm = load(path)
    engine = lm._engine()
    assert lm._engine() is engine, "nothing has changed"
    text = lm.generate("the cat", **GREEDY)
    for block in lm.model.blocks():
        assert block.mlp.down_proj.weight.shape[0] == lm.model.spec.d_model, "the module is there now"
    assert lm._engine() is engine, "to look at it changes nothing"
    with torch.no_grad():
        lm.model.norm.weight.mul_(-1)
    assert lm._engine() is not engine, "a weight was changed in place"
    assert lm.generate("the cat", **GREEDY) != text, "and counts"


def test_copies_and_replaced_models_are_what_they_say(path: Path) -> None:
    lm = load(path)
    text = lm.generate("the cat", **GREEDY)
    for other in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):  # our own
        assert other.generate("the cat", **GREEDY) == text, "a copy says the same"
    with torch.no_grad():
        changed = unpack(twin(lm.model))
        changed.norm.weight = torch.nn.Parameter(lm.model.norm.weight.clone())
        changed.norm.weight.mul_(-1)
    lm.model = changed
    assert lm.model is changed, "as given"
    assert lm.generate("the cat", **GREEDY) != text, "and used"


def test_what_is_wrong_with_a_file_is_said_when_it_is_opened(path: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(Exception, match=r"cut off|end of the file"):
        load(cut)
    assert load(path).tokenizer.vocab_size == tokenizer.vocab_size, "the control opens"
