"""The block runner, which runs a model block by block, each with any weights and any dropped branches.

A block takes more than hidden states, such as masks, positions and rotary embeddings. These are captured once for every
shape (B, T) from the model's own forward pass. What comes before and after the blocks runs in the model's own forward
pass too; a final norm and head are called directly where that gives the same bits.

Shapes: B sequences, T positions, P positions of any sequences, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...spaces.levels.cuda_graphs import Replays
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.replacement import (
    BlockCall,
    EnoughError,
    Visit,
    answer,
    around_blocks,
    dummy_tokens,
    leaves,
    set_module,
    set_tensor,
)
from ...spaces.model.structure import Structure
from .head import Head
from .kernels import fixed_kernels
from .launch import Pace
from .loaded import LoadedBlock
from .memory import spread

__all__ = ["BlockRunner", "LoadedBlock"]


class BlockRunner:
    """Runs one model on one device or several, one block at a time.

    Embedding, head and everything else outside the blocks stay on the first device. The norms, biases and buffers of
    a block stay on its device; its weight matrices are loaded only while the block is in use (replayed blocks keep
    memory for them). The values of a sequence depend on the tokens of that sequence only.

    Args:
        model: dense model with its checkpoint and structure.
        device: device that runs everything, or several devices that share the blocks in order.
        dtype: type of weights and hidden states, as in `from_pretrained(dtype=...)`.
        micro_batch: number of sequences that always run together, so that a value never depends on what else runs.
        length: largest number of tokens in a sequence.
        pace: settings of how the blocks run their micro-batches; by default one by one and not compiled.

    Raises:
        ValueError: the model hands its blocks values that depend on the tokens.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: DenseModel,
        *,
        device: str | torch.device | Sequence[torch.device],
        dtype: torch.dtype,
        micro_batch: int,
        length: int,
        pace: Pace | None = None,
    ) -> None:
        self.checkpoint = checkpoint = model.checkpoint
        self.structure = structure = model.structure
        devices = [device] if isinstance(device, str | torch.device) else device
        self.devices = [torch.device(name) for name in devices]
        self.device = self.devices[0]
        self.dtype = dtype
        self.micro_batch = micro_batch
        self.length = length
        self.pace = pace or Pace()
        self._model = checkpoint.skeleton(dtype)
        self._blocks = list(self._model.get_submodule(structure.blocks_path).children())
        self._small: dict[int, dict[str, Tensor]] = {}
        self._loaded: dict[int, LoadedBlock] = {}
        self._replays = Replays()
        self._calls: dict[tuple[int, int], list[BlockCall]] = {}
        self._load_outside()
        self.hidden = self._capture(micro_batch, length)
        self._norm = self._plain_norm()

    def place(self, index: int) -> torch.device:
        """Return the device of the block with this index."""
        return self.devices[spread(index, len(self._blocks), len(self.devices))]

    @torch.no_grad()
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Compute the hidden states (B, T, D) that the model feeds its first block.

        They include everything that comes before the blocks, such as positions, scaling and norms.

        Raises:
            ValueError: the tokens are not one micro-batch, or are longer than the runner's length.
        """
        if tokens_BT.ndim != 2 or len(tokens_BT) != self.micro_batch or tokens_BT.shape[1] > self.length:
            raise ValueError(
                f"tokens have shape {tuple(tokens_BT.shape)}; "
                f"this runner takes ({self.micro_batch}, {self.length}) or shorter"
            )
        entered: list[Tensor] = []

        def visit(_: int, states_BTD: Tensor, __: BlockCall) -> object:
            entered.append(states_BTD)
            raise EnoughError

        around_blocks(self._model, self.structure.blocks_path, visit, tokens_BT.to(self.device))
        return entered[0]

    @contextmanager
    def block(self, index: int, *, dense: bool = True) -> Iterator[LoadedBlock]:
        """Load a block on its device while the context lasts; the same block cannot be loaded twice at once.

        Args:
            index: index of the block in the model.
            dense: whether to read the block's dense weights; if not, every layer that runs has to be installed.
        """
        block, module = self.structure.blocks[index], self._blocks[index]
        matrices = {f"{linear.path.removeprefix(f'{block.path}.')}.weight" for linear in block.linears}
        prefix, place = f"{block.path}.", self.place(index)
        # No inference mode: a compiled block would be compiled again for every mix of weights that were made inside
        # and outside of it.
        with torch.no_grad(), fixed_kernels(self.device):
            if index not in self._loaded:
                self._small[index] = self._read(module, prefix, place, without=matrices)
                self._loaded[index] = LoadedBlock(
                    block, module, place, self.dtype, self._call, self.micro_batch, self.pace, self._replays
                )
            for name, tensor in self._small[index].items():
                set_tensor(module, name, tensor)
            loaded = self._loaded[index]
            weights = self._read(module, prefix, place, only=matrices) if dense else {}
            loaded.load({f"{prefix}{name}".removesuffix(".weight"): w for name, w in weights.items()})
            try:
                yield loaded
            finally:
                loaded.release()

    def _call(self, index: int, sequences: int, length: int) -> BlockCall:
        """Return the arguments of a block besides hidden states, which are captured on first use of a shape."""
        if (sequences, length) not in self._calls:
            self._capture(sequences, length)
        return self._calls[sequences, length][index]

    @torch.no_grad()
    def logits(self, states_PD: Tensor) -> Tensor:
        """Compute logits (P, V) in float32 from hidden states after the last block, at any positions of any sequences.

        The head multiplies in the runner's dtype with float32 accumulation and output. Caps and scales follow in
        float32. Calls with the same P give the same bits.
        """
        if self._norm is not None:
            logits_PV: Tensor = self._head(self._norm(states_PD))
            return logits_PV
        starts = range(0, len(states_PD), self.length)
        return torch.cat([self._after_blocks(states_PD[i : i + self.length]) for i in starts])

    @torch.no_grad()
    def install_ends(self, weights: Mapping[str, Tensor]) -> None:
        """Set other weights (V, D) for embedding and head by their paths; an empty mapping restores the dense ones.

        Where embedding and head are tied, either path stands for both.

        Raises:
            ValueError: a path is neither that of the embedding nor that of the head.
        """
        ends = self.structure.ends
        unknown = sorted(set(weights) - {end.path for end in ends.linears})
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is neither embedding nor head; give {ends.embedding.path!r} or {ends.head.path!r}"
            )
        tensors = self._dense_ends | {
            path: self._converted(weight, self.device) for path, weight in weights.items()
        }
        if ends.tied and weights:
            tensors = dict.fromkeys(tensors, tensors[next(iter(weights))])
        for path, tensor in tensors.items():
            set_tensor(self._model, f"{path}.weight", tensor)

    @contextmanager
    def ends(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Install other weights as `install_ends` does while the context lasts, then restore the dense ones."""
        self.install_ends(weights)
        try:
            yield
        finally:
            self.install_ends({})

    def dense_end(self, path: str) -> Tensor:
        """Return the dense weight (V, D) of the embedding or the head by its path."""
        return self._dense_ends[path]

    def _after_blocks(self, states_PD: Tensor, entered: Callable[[], None] = lambda: None) -> Tensor:
        """Compute logits (P, V) of at most `length` positions; `entered` is called in place of the last block."""
        last, outputs = len(self._blocks) - 1, self.structure.block_outputs

        def visit(index: int, states_BTD: Tensor, _: BlockCall) -> object:
            if index < last:
                return answer(states_BTD, outputs)
            entered()
            return answer(states_PD[None], outputs)

        tokens_BT = dummy_tokens(self._model, 1, len(states_PD)).to(self.device)
        logits_BPV = around_blocks(self._model, self.structure.blocks_path, visit, tokens_BT)
        assert logits_BPV is not None
        return logits_BPV[0]

    def _plain_norm(self) -> nn.Module | None:
        """Return the norm between blocks and head if nothing else is there, so that `head(norm(states))` gives logits.

        The norm is returned only where the model's own forward pass gives the same bits on random states, else None.
        """
        called: list[nn.Module] = []
        inside = f"{self.structure.blocks_path}."
        with ExitStack() as hooks:
            for path, module in self._model.named_modules():
                if not path.startswith(inside) and not list(module.children()):
                    handle = module.register_forward_pre_hook(lambda module, _: called.append(module))
                    hooks.callback(handle.remove)
            rows = torch.randn((min(self.length, 8), self.hidden), generator=torch.Generator().manual_seed(0))
            states_PD = rows.to(self.device, self.dtype)
            logits_PV = self._after_blocks(states_PD, entered=called.clear)
        if len(called) != 2 or called[1] is not self._head:
            return None
        norm = called[0]
        return norm if torch.equal(self._head(norm(states_PD)), logits_PV) else None

    def _capture(self, sequences: int, length: int) -> int:
        """Keep the arguments of every block besides hidden states, for one shape, and return the hidden size.

        Raises:
            ValueError: the arguments of a block depend on the tokens.
        """
        calls: list[BlockCall] = []
        sizes: list[int] = []

        def keep(_: int, states_BTD: Tensor, call: BlockCall) -> object:
            calls.append(_moved(call, self.place(len(calls))))
            sizes.append(states_BTD.shape[-1])
            return answer(states_BTD, self.structure.block_outputs)

        def compare(index: int, states_BTD: Tensor, call: BlockCall) -> object:
            if not _same(calls[index], _moved(call, self.place(index))):
                raise ValueError(
                    f"{self.structure.model_class} hands block {index} values that depend on the tokens, "
                    "which is not supported; give a model whose blocks depend on hidden states only"
                )
            return answer(states_BTD, self.structure.block_outputs)

        for which, visit in enumerate((keep, compare)):
            tokens_BT = dummy_tokens(self._model, sequences, length, which).to(self.device)
            _until_last(self._model, self.structure, visit, tokens_BT)
        self._calls[sequences, length] = calls
        return sizes[0]

    def _load_outside(self) -> None:
        """Load everything outside the blocks, and also the buffers of the blocks, which are small."""
        head_path = self.structure.ends.head.path
        self._head = Head(self._model.get_submodule(head_path))
        set_module(self._model, head_path, self._head)
        blocks = f"{self.structure.blocks_path}."
        for name, buffer in list(self._model.named_buffers(remove_duplicate=False)):
            place = self.place(self._index(name)) if name.startswith(blocks) else self.device
            set_tensor(self._model, name, buffer.to(place))
        outside = {name for name in self._model.state_dict() if not name.startswith(blocks)}
        for name, tensor in self._read(self._model, "", self.device, only=outside).items():
            set_tensor(self._model, name, tensor)
        self._dense_ends = {
            end.path: self._model.get_parameter(f"{end.path}.weight") for end in self.structure.ends.linears
        }

    def _index(self, name: str) -> int:
        """Return the index of the block that a tensor belongs to, from the tensor's name."""
        return int(name.removeprefix(f"{self.structure.blocks_path}.").split(".")[0])

    def _read(
        self,
        module: nn.Module,
        prefix: str,
        device: torch.device,
        only: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Read stored tensors of `module` to a device by name; a tensor with several names is read once.

        Names, also those in `only` and `without`, are relative to the module; `prefix` makes them the model's names.
        """
        read: dict[int, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for name, empty in module.state_dict(keep_vars=True).items():
            if name in without or (only is not None and name not in only):
                continue
            # A buffer that the files lack keeps the value that the model's constructor gave it.
            if not isinstance(empty, nn.Parameter) and prefix + name not in self.checkpoint:
                continue
            if id(empty) not in read:
                tensor = self._converted(self.checkpoint.tensor(prefix + name), device)
                is_parameter = isinstance(empty, nn.Parameter)
                read[id(empty)] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            tensors[name] = read[id(empty)]
        return tensors

    def _converted(self, tensor: Tensor, device: torch.device) -> Tensor:
        # Always copied: memory mapped from a file is aligned otherwise than allocated memory, and the bits of products
        # may depend on the alignment.
        return tensor.to(device, self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _until_last(model: PreTrainedModel, structure: Structure, visit: Visit, tokens_BT: Tensor) -> None:
    """Run the model's own forward pass with `visit` in place of every block, and stop after the last block."""

    def stopping(index: int, states_BTD: Tensor, call: BlockCall) -> object:
        result = visit(index, states_BTD, call)
        if index == len(structure.blocks) - 1:
            raise EnoughError
        return result

    around_blocks(model, structure.blocks_path, stopping, tokens_BT)


def _same(first: BlockCall, second: BlockCall) -> bool:
    """Return whether two calls have equal tensors."""
    pairs = zip(
        leaves((first.args, dict(first.kwargs))), leaves((second.args, dict(second.kwargs))), strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _moved(call: BlockCall, device: torch.device) -> BlockCall:
    """Return the same call with its tensors on `device`."""
    args, kwargs = torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(device), (call.args, dict(call.kwargs))
    )
    return BlockCall(args, kwargs)
