"""Runs a model block by block, with any weights and dropped branches in the block that is loaded.

Legend: B sequences, T positions, P positions of any sequences, D hidden, I inputs of a layer, V vocabulary.
What a block needs besides hidden states (masks, positions, rotary embeddings) is what the model's own forward
hands it, captured once for every (B, T); what comes before and after the blocks is the model's own forward.
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
    """One model on one device or several, a block at a time.

    Embedding, head and whatever else is not a block stay on the first device; the blocks' norms, biases and
    buffers are kept too, their matrices are loaded for as long as a block is in use (replayed blocks keep a place for them). A row's values depend on
    that row's tokens only.

    Args:
        model: the dense model.
        device: where everything runs; a sequence of devices shares the blocks in order.
        dtype: what it is computed in, as with `from_pretrained(dtype=...)`.
        micro_batch: sequences that always run together, so that a value never depends on company.
        length: tokens in every sequence, unless a call names fewer.
        pace: how the blocks run their micro-batches.

    Raises:
        ValueError: the model's forward hands its blocks something that depends on the tokens.
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
        """The device of a block."""
        return self.devices[spread(index, len(self._blocks), len(self.devices))]

    @torch.no_grad()
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the model feeds its first block, states_BTD: embeddings, positions, scaling and norms."""
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
        """The block on its device, for as long as the context lasts; not twice at once.

        Args:
            index: number of the block in the model.
            dense: read its dense weights; otherwise every layer that runs has to be installed.
        """
        block, module = self.structure.blocks[index], self._blocks[index]
        matrices = {f"{linear.path.removeprefix(f'{block.path}.')}.weight" for linear in block.linears}
        prefix, place = f"{block.path}.", self.place(index)
        # Not in inference mode: a compiled block would be made anew for every mix of weights made in and outside.
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
        """What a block is called with besides states."""
        if (sequences, length) not in self._calls:
            self._capture(sequences, length)
        return self._calls[sequences, length][index]

    @torch.no_grad()
    def logits(self, states_PD: Tensor) -> Tensor:
        """Logits_PV in float32 of what the last block returned, at any positions of any sequences.

        The head multiplies in the compute dtype with float32 accumulation and output; caps and scales follow
        in float32. The same P gives the same bits.
        """
        if self._norm is not None:
            logits_PV: Tensor = self._head(self._norm(states_PD))
            return logits_PV
        starts = range(0, len(states_PD), self.length)
        return torch.cat([self._after_blocks(states_PD[i : i + self.length]) for i in starts])

    @torch.no_grad()
    def install_ends(self, weights: Mapping[str, Tensor]) -> None:
        """Set other weights_VD for embedding and head by their paths; {} restores the dense ones.

        Where they are tied, either path stands for both.
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
        """`install_ends` for a while, then the dense ones."""
        self.install_ends(weights)
        try:
            yield
        finally:
            self.install_ends({})

    def dense_end(self, path: str) -> Tensor:
        """The dense weight_VD of embedding or head."""
        return self._dense_ends[path]

    def _after_blocks(self, states_PD: Tensor, entered: Callable[[], None] = lambda: None) -> Tensor:
        """Logits_PV of at most T positions; `entered` is called when the blocks are over."""
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
        """The module between blocks and head if it is all there is, so that `head(norm(states))` is the logits.

        Believed only where the model's own forward gives the same bits on random states.
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
        """Keep what every block is called with besides states; the size of the states."""
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
        """Load everything but the blocks; buffers of blocks are small and loaded too."""
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
        """The number of the block that a tensor below the list of blocks belongs to."""
        return int(name.removeprefix(f"{self.structure.blocks_path}.").split(".")[0])

    def _read(
        self,
        module: nn.Module,
        prefix: str,
        device: torch.device,
        only: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The stored tensors of `module`, on a device; a tensor with several names is read once."""
        read: dict[int, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for name, empty in module.state_dict(keep_vars=True).items():
            if name in without or (only is not None and name not in only):
                continue
            # Saved buffers that a file lacks stay as the model makes them.
            if not isinstance(empty, nn.Parameter) and prefix + name not in self.checkpoint:
                continue
            if id(empty) not in read:
                tensor = self._converted(self.checkpoint.tensor(prefix + name), device)
                is_parameter = isinstance(empty, nn.Parameter)
                read[id(empty)] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            tensors[name] = read[id(empty)]
        return tensors

    def _converted(self, tensor: Tensor, device: torch.device) -> Tensor:
        # Always a copy: a file's mapping is not aligned as the allocator's memory, and products may depend on it.
        return tensor.to(device, self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _until_last(model: PreTrainedModel, structure: Structure, visit: Visit, tokens_BT: Tensor) -> None:
    """`around_blocks` without what comes after the blocks."""

    def stopping(index: int, states_BTD: Tensor, call: BlockCall) -> object:
        result = visit(index, states_BTD, call)
        if index == len(structure.blocks) - 1:
            raise EnoughError
        return result

    around_blocks(model, structure.blocks_path, stopping, tokens_BT)


def _same(first: BlockCall, second: BlockCall) -> bool:
    pairs = zip(
        leaves((first.args, dict(first.kwargs))), leaves((second.args, dict(second.kwargs))), strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _moved(call: BlockCall, device: torch.device) -> BlockCall:
    """The same with its tensors on `device`."""
    args, kwargs = torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(device), (call.args, dict(call.kwargs))
    )
    return BlockCall(args, kwargs)
