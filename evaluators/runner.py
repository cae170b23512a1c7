"""Runs a model block by block, with any weights and dropped branches in the block that is loaded.

Legend: B micro-batch, T positions, P positions of any sequences, D hidden, I inputs of a layer, V vocabulary.
What a block needs besides hidden states (masks, positions, rotary embeddings) is what the model's own forward
hands it, captured once for (B, T); what comes before and after the blocks is the model's own forward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..spaces.checkpoint import Checkpoint
from ..spaces.replacement import (
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
from ..spaces.structure import Structure
from .loaded import LoadedBlock

__all__ = ["BlockRunner", "LoadedBlock"]


class BlockRunner:
    """One model on one device, for micro-batches of one shape.

    Embedding, head and whatever else is not a block stay on the device; blocks do if `resident`, else each
    is read from its file whenever it is used. A row's values depend on that row's tokens only.

    Args:
        checkpoint: the dense model.
        structure: its structure.
        device: where everything runs.
        dtype: what it is computed in, as with `from_pretrained(dtype=...)`.
        micro_batch: sequences in every batch (B).
        length: tokens in every sequence (T).
        resident: keep the dense blocks on the device after their first use.

    Raises:
        ValueError: the model's forward hands its blocks something that depends on the tokens.
    """

    @torch.inference_mode()
    def __init__(
        self,
        checkpoint: Checkpoint,
        structure: Structure,
        *,
        device: str | torch.device,
        dtype: torch.dtype,
        micro_batch: int,
        length: int,
        resident: bool = True,
    ) -> None:
        self.checkpoint = checkpoint
        self.structure = structure
        self.device = torch.device(device)
        self.dtype = dtype
        self.micro_batch = micro_batch
        self.length = length
        self.resident = resident
        self._model = checkpoint.skeleton(dtype)
        self._blocks = list(self._model.get_submodule(structure.blocks_path).children())
        self._dense: dict[int, dict[str, Tensor]] = {}
        self._load_outside()
        self._calls, self.hidden = self._capture()
        self._norm = self._plain_norm()

    @torch.inference_mode()
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the model feeds its first block, states_BTD: embeddings, positions, scaling and norms."""
        if tokens_BT.shape != (self.micro_batch, self.length):
            raise ValueError(
                f"tokens have shape {tuple(tokens_BT.shape)}; "
                f"this runner takes ({self.micro_batch}, {self.length})"
            )
        entered: list[Tensor] = []

        def visit(_: int, states_BTD: Tensor, __: BlockCall) -> object:
            entered.append(states_BTD)
            raise EnoughError

        around_blocks(self._model, self.structure.blocks_path, visit, tokens_BT.to(self.device))
        return entered[0]

    @contextmanager
    def block(self, index: int) -> Iterator[LoadedBlock]:
        """The block with its dense weights on the device, for as long as the context lasts.

        One block may be loaded while another one is (to prefetch it), but not twice at once.
        """
        block, module = self.structure.blocks[index], self._blocks[index]
        with torch.inference_mode():
            dense = self._dense.get(index) or self._read(module, f"{block.path}.")
            for name, tensor in dense.items():
                set_tensor(module, name, tensor)
            if self.resident:
                self._dense[index] = dense
            shape_BTD = (self.micro_batch, self.length, self.hidden)
            loaded = LoadedBlock(block, module, dense, self._calls[index], shape_BTD)
        try:
            yield loaded
        finally:
            loaded.install({}, ())
            if not self.resident:
                for name, tensor in dense.items():
                    set_tensor(module, name, torch.empty_like(tensor, device="meta"))

    @torch.inference_mode()
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

    @torch.inference_mode()
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
        tensors = self._dense_ends | {path: self._converted(weight) for path, weight in weights.items()}
        if ends.tied and weights:
            tensors = dict.fromkeys(tensors, tensors[next(iter(weights))])
        for path, tensor in tensors.items():
            set_tensor(self._model, f"{path}.weight", tensor)

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

    def _capture(self) -> tuple[list[BlockCall], int]:
        """What every block is called with besides states, and the size of the states."""
        calls: list[BlockCall] = []
        sizes: list[int] = []

        def keep(_: int, states_BTD: Tensor, call: BlockCall) -> object:
            calls.append(call)
            sizes.append(states_BTD.shape[-1])
            return answer(states_BTD, self.structure.block_outputs)

        def compare(index: int, states_BTD: Tensor, call: BlockCall) -> object:
            if not _same(calls[index], call):
                raise ValueError(
                    f"{self.structure.model_class} hands block {index} values that depend on the tokens, "
                    "which is not supported; give a model whose blocks depend on hidden states only"
                )
            return answer(states_BTD, self.structure.block_outputs)

        for which, visit in enumerate((keep, compare)):
            tokens_BT = dummy_tokens(self._model, self.micro_batch, self.length, which).to(self.device)
            _until_last(self._model, self.structure, visit, tokens_BT)
        return calls, sizes[0]

    def _load_outside(self) -> None:
        """Load everything but the blocks; buffers of blocks are small and loaded too."""
        head_path = self.structure.ends.head.path
        self._head = _Head(self._model.get_submodule(head_path))
        set_module(self._model, head_path, self._head)
        for name, buffer in list(self._model.named_buffers(remove_duplicate=False)):
            set_tensor(self._model, name, buffer.to(self.device))
        inside = f"{self.structure.blocks_path}."
        for name, tensor in self._read(self._model, "", without=inside).items():
            set_tensor(self._model, name, tensor)
        self._dense_ends = {
            end.path: self._model.get_parameter(f"{end.path}.weight") for end in self.structure.ends.linears
        }

    def _read(self, module: nn.Module, prefix: str, without: str | None = None) -> dict[str, Tensor]:
        """The stored tensors of `module`, on the device; a tensor with several names is read once."""
        read: dict[int, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for name, empty in module.state_dict(keep_vars=True).items():
            if without is not None and name.startswith(without):
                continue
            # Saved buffers that a file lacks stay as the model makes them.
            if not isinstance(empty, nn.Parameter) and prefix + name not in self.checkpoint:
                continue
            if id(empty) not in read:
                tensor = self._converted(self.checkpoint.tensor(prefix + name))
                is_parameter = isinstance(empty, nn.Parameter)
                read[id(empty)] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            tensors[name] = read[id(empty)]
        return tensors

    def _converted(self, tensor: Tensor) -> Tensor:
        # Always a copy: a file's mapping is not aligned as the allocator's memory, and products may depend on it.
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


class _Head(nn.Module):
    """A linear head that multiplies in its own dtype and returns float32, accumulated in float32."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        parameters = dict(linear.named_parameters())
        self.register_parameter("weight", parameters["weight"])
        self.register_parameter("bias", parameters.get("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Of x (..., D): (..., V)."""
        flat_PD = x.reshape(-1, x.shape[-1])
        if x.is_cuda and x.dtype != torch.float32:
            logits_PV = torch.mm(flat_PD, self.weight.T, out_dtype=torch.float32)
        else:
            logits_PV = torch.mm(flat_PD.float(), self.weight.T.float())
        if self.bias is not None:
            logits_PV = logits_PV + self.bias.float()
        return logits_PV.view(*x.shape[:-1], -1)


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
