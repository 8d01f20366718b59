"""The door of torch.hub: models with their weights, in any program.

model = torch.hub.load("path/to/this/folder", "neurolm", source="local", weights="NeuroLM-B.pt")

weights: a checkpoint, official or own; a folder of `save_pretrained`; or OWNER/NAME on the Hugging Face hub, there with
`revision`. Models are in evaluation mode. An official NeuroLM wants `model.tokenizer.pad_windows(276)`, a tokenizer
`model.VQ.encoder.pad_windows(1024)`: the padding that it was trained with.

The modules here are called `model`, `errors`, `utils`: names that a program may have for its own. So they are loaded as
parts of a package, `neurolm_hub`, with every import of one of them read as an import of that package's. Modules that
the program has, or imports later, are never touched. A pickled model can be read where torch.hub.load has been called
before; to keep one, use `save_pretrained`.
"""

import ast
import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path

dependencies = ["torch", "numpy", "einops", "tqdm", "safetensors", "huggingface_hub"]

_ROOT = Path(__file__).resolve().parent
_PACKAGE = "neurolm_hub"
_OURS = {path.stem for path in _ROOT.glob("*.py")} | {path.parent.name for path in _ROOT.glob("*/*.py")}


class _AsPackage(ast.NodeTransformer):
    """Imports of our modules as imports from the package."""

    def visit_ImportFrom(self, node):
        if not node.level and node.module.split(".")[0] in _OURS:
            node.module = f"{_PACKAGE}.{node.module}"
        return node

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0] in _OURS:
                if "." in alias.name and not alias.asname:
                    raise ImportError(f"import {alias.name}: hubconf.py cannot rename it, write from ... import ...")
                alias.name, alias.asname = f"{_PACKAGE}.{alias.name}", alias.asname or alias.name
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname):  # never the cached bytecode, which belongs to the scripts
        tree = ast.parse(self.get_data(self.path), self.path)
        return compile(_AsPackage().visit(tree), self.path, "exec", dont_inherit=True)


class _Finder:
    """Finds what is in the package; all else is left to others."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        spec = PathFinder.find_spec(fullname, path) if fullname.startswith(f"{_PACKAGE}.") else None
        if spec is not None and spec.origin:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def _ours(module: str):
    """One of our modules."""
    if _PACKAGE not in sys.modules:
        spec = ModuleSpec(_PACKAGE, None, is_package=True)
        spec.submodule_search_locations.append(str(_ROOT))
        sys.modules[_PACKAGE] = module_from_spec(spec)
        sys.meta_path.insert(0, _Finder)
    loaded = Path(sys.modules[_PACKAGE].__path__[0])
    if loaded != _ROOT:
        raise ImportError(f"this program has loaded models from {loaded}: it cannot load some from {_ROOT} as well")
    return importlib.import_module(f"{_PACKAGE}.{module}")


def _open(weights, revision, *names):
    found = _ours("model.hub").read_weights(weights, revision)
    return _ours("model.opening").open_model(found, str(weights), names)


def neurolm(weights, revision=None):
    """NeuroLM of stage 2 or 3."""
    return _open(weights, revision, "NeuroLM")


def neurolm_tokenizer(weights, revision=None):
    """NeuroLM's tokenizer, a VQ_Align."""
    return _open(weights, revision, "VQ_Align")


def labram(weights, revision=None):
    """LaBraM: a Classifier, or before fine-tuning a MaskedModel."""
    return _open(weights, revision, "Classifier", "MaskedModel")


def labram_tokenizer(weights, revision=None):
    """LaBraM's tokenizer, a VQNSP."""
    return _open(weights, revision, "VQNSP")
