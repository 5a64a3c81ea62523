"""PyTorch operators that a program may contain.

PyTorch's registry knows thousands, among them those that read and write files, talk to other
machines, or look at memory without checking bounds. So a program may contain only operators that
just compute and can become ONNX: the list below, not what an installed version happens to know.
"""

from __future__ import annotations

from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats.source_model import FIELD
from modelrollout.reasons import Reason

# Of the namespace aten, also in place, with _ at their end; what holds programs of TorchScript
# together; the arithmetic of sizes in exported ones.
_COMPUTING = """
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm
    addmv addr affine_grid_generator alias all alpha_dropout amax amin aminmax __and__ any append
    arange arccos arcsin arctan argmax argmin argsort as_tensor asin asinh _assert_scalar
    _assert_tensor_metadata atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d
    avg_pool3d baddbmm batch_norm binary_cross_entropy_with_logits bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm Bool bool broadcast_tensors
    broadcast_to bucketize _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int
    _cast_Long _cast_Short cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip
    clone col2im concat concatenate constant_pad_nd __contains__ contiguous conv1d conv2d conv3d
    conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d _convolution convolution
    _convolution_mode copy cos cosh cosine_similarity cpu cross cross_entropy_loss cumprod cumsum
    deg2rad Delete dequantize __derive_index det detach device diag diag_embed diagonal
    diagonal_copy dim div divide dot double dropout einsum elu embedding embedding_bag empty
    empty_like eq erf erfc exp exp2 expand expand_as expm1 extend eye
    fake_quantize_per_channel_affine fake_quantize_per_tensor_affine feature_alpha_dropout
    feature_dropout fill flatten flip fliplr flipud Float float FloatImplicit floor floor_divide
    floordiv fmax fmin fmod format frac frobenius_norm full full_like gather ge gelu get_device
    __getitem__ glu greater greater_equal grid_sampler grid_sampler_2d group_norm gru gt half
    hardshrink hardsigmoid hardswish hardtanh heaviside hstack hypot im2col index index_add
    index_copy index_fill index_put index_select insert instance_norm Int int __interpolate
    IntImplicit __is__ is_autocast_cpu_enabled is_autocast_enabled is_complex is_floating_point
    is_grad_enabled is_nonzero isclose isfinite isinf isnan isneginf __isnot__ isposinf item keys
    kl_div layer_norm le leaky_relu len lerp less less_equal lift lift_fresh lift_fresh_copy
    linalg_cross linalg_det linalg_matrix_norm linalg_norm linalg_vector_norm linear linspace list
    log log10 log1p log2 log_sigmoid _log_softmax log_softmax logaddexp logaddexp2 logcumsumexp
    logdet logical_and logical_not logical_or logical_xor logit logsumexp long __lshift__ lstm
    lstm_cell lt masked_fill masked_scatter masked_select matmul max max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
    maximum mean meshgrid mH min minimum mish mm movedim mse_loss mT mul multiply mv nan_to_num
    narrow native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    native_dropout native_group_norm native_layer_norm ne neg new_empty new_full new_ones new_zeros
    nll_loss nll_loss_forward nonzero nonzero_numpy norm __not__ not_equal numel one_hot ones
    ones_like __or__ outer _pack_padded_sequence pad _pad_packed_sequence pairwise_distance
    percentFormat permute pixel_shuffle pixel_unshuffle pop positive pow prelu prod rad2deg
    __range_length ravel reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
    remainder repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape
    reshape_as _reshape_from_tensor resolve_neg rnn_relu rnn_tanh roll rot90 round rrelu __rshift__
    rsqrt rsub scalar_tensor ScalarImplicit scaled_dot_product_attention scatter scatter_add
    scatter_reduce select select_scatter selu _set_item _shape_as_tensor sigmoid sign silu sin sinc
    sinh size slice slice_scatter _softmax softmax softplus softshrink sort special_erf special_erfc
    special_erfcx special_expm1 special_log_softmax special_sinc special_softmax split
    split_with_sizes sqrt square squeeze stack std std_mean str sub subtract sum swapaxes swapdims
    sym_constrain_range sym_constrain_range_for_size sym_numel sym_size sym_stride t take tan tanh
    tanhshrink tensor tensor_split tensordot threshold tile to _to_copy topk transpose tril triu
    true_divide trunc type type_as unbind unflatten unfold unique_dim unsafe_chunk unsafe_split
    unsafe_split_with_sizes _unsafe_view unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_nearest_exact1d upsample_nearest_exact2d upsample_trilinear3d values var var_mean view
    view_as view_copy vstack warn warn_once _weight_norm where xlogy __xor__ zero zeros zeros_like
"""
_PRIM = """
    Constant ConstantChunk DictConstruct GetAttr If ListConstruct ListUnpack Loop NumToTensor
    RaiseException SetAttr TupleConstruct TupleIndex TupleUnpack Uninitialized abs data device dtype
    is_cpu is_cuda is_mkldnn is_nested is_quantized is_sparse isinstance layout max min
    requires_grad shape tolist type unchecked_cast unchecked_unwrap_optional
"""
_SIZES = """
    _operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge _operator.getitem
    _operator.gt _operator.le _operator.lt _operator.mod _operator.mul _operator.ne _operator.neg
    _operator.not_ _operator.or_ _operator.pow _operator.sub _operator.truediv torch.sym_float
    torch.sym_max torch.sym_min torch.sym_not
"""
_ATEN = frozenset(_COMPUTING.split())
_KINDS = frozenset(f"prim::{name}" for name in _PRIM.split())
_TARGETS = frozenset(_SIZES.split())
_EXPORTED = "torch.ops.aten."


def check_kind(kind: str) -> None:
    """``aten::add``, a node's kind in TorchScript; raises JobError (OperatorRefused)."""
    space, _, name = kind.partition("::")
    if not (kind in _KINDS or (space == "aten" and _computes(name))):
        raise _refused(kind)


def check_target(target: str) -> None:
    """``torch.ops.aten.add.Tensor``, a node's target in an exported program; raises JobError
    (OperatorRefused).
    """
    name, dot, overload = target.removeprefix(_EXPORTED).partition(".")
    known = (
        target.startswith(_EXPORTED)
        and dot
        and overload.isidentifier()
        and not overload.startswith("_")
        and _computes(name)
    )
    if not (known or target in _TARGETS):
        raise _refused(target)


def _computes(name: str) -> bool:
    return name in _ATEN or (name.removesuffix("_") in _ATEN and not name.startswith("_"))


def _refused(operator: str) -> Exception:
    return bad_input(
        Reason.OPERATOR_REFUSED,
        f"{FIELD}.uri: operator {operator[:100]!r} is not one of those that are converted; only those that"
        " compute are, none that reads files, calls code, draws random numbers, or has no match in ONNX:"
        " export the model without it, or export it to ONNX where it was trained",
    )
