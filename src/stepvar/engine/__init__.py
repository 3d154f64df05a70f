"""Ways to run a generation: eagerly, or by replaying CUDA graphs of its passes."""

from stepvar.engine.runner import ENGINES as ENGINES
from stepvar.engine.runner import Engine as Engine
from stepvar.engine.runner import EngineName as EngineName
