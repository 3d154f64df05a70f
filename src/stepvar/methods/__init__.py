"""Acceleration methods. A new one is a file in this folder with ``@register`` on its class, imported here."""

from stepvar.methods.base import Method as Method
from stepvar.methods.base import MethodState as MethodState
from stepvar.methods.baselines import PCA as PCA
from stepvar.methods.baselines import Dense as Dense
from stepvar.methods.baselines import HighPass as HighPass
from stepvar.methods.baselines import Magnitude as Magnitude
from stepvar.methods.baselines import Random as Random
from stepvar.methods.baselines import SkipLast as SkipLast
from stepvar.methods.compose import Compose as Compose
from stepvar.methods.coverage import Coverage as Coverage
from stepvar.methods.drop_guidance import DropGuidance as DropGuidance
from stepvar.methods.fastvar import FastVAR as FastVAR
from stepvar.methods.latent_delta import LatentDelta as LatentDelta
from stepvar.methods.lazyvar import LazyVAR as LazyVAR
from stepvar.methods.pruning import Pruning as Pruning
from stepvar.methods.pruning import PruningState as PruningState
from stepvar.methods.registry import METHODS as METHODS
from stepvar.methods.registry import all_methods as all_methods
from stepvar.methods.registry import as_method as as_method
from stepvar.methods.registry import make_method as make_method
from stepvar.methods.registry import register as register
from stepvar.methods.sparsevar import SparseVAR as SparseVAR
from stepvar.methods.stepvar import StepVAR as StepVAR
from stepvar.methods.stepvar_plus import StepVARPlus as StepVARPlus
