"""The traffic of small GPU programs, whose kernels, arithmetic and bytes are counted by hand."""

import pytest

from deit_jax.runtime import traffic

PRODUCT = """\
HloModule product

ENTRY %main (a: bf16[64,32], b: bf16[32,16]) -> f32[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %call = (f32[64,16]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata=\
{op_name="jit(step)/jvp(jit(run_blocks))/closed_call/mlp/dot_general"}, backend_config=\
{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %p = f32[64,16]{1,0} get-tuple-element(%call), index=0
}
"""

# a product inside a fusion, then gelu-like work on its result and a second result, then a copy
CHAIN = """\
HloModule chain

%inner (x: bf16[64,32], y: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %y = bf16[32,16]{1,0} parameter(1)
  ROOT %d = bf16[64,16]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%elementwise (h: bf16[64,16], bias: bf16[12,16]) -> (bf16[64,16], f32[16]) {
  %h = bf16[64,16]{1,0} parameter(0)
  %bias = bf16[12,16]{1,0} parameter(1)
  %own = bf16[1,16]{1,0} slice(%bias), slice={[3:4], [0:16]}
  %flat = bf16[16]{0} bitcast(%own)
  %wide = bf16[64,16]{1,0} broadcast(%flat), dimensions={1}
  %sum = bf16[64,16]{1,0} add(%h, %wide)
  %zero = f32[] constant(0)
  %up = f32[64,16]{1,0} convert(%sum)
  %total = f32[16]{0} reduce(%up, %zero), dimensions={0}, to_apply=%add
  ROOT %both = (bf16[64,16]{1,0}, f32[16]{0}) tuple(%sum, %total)
}

%turn (t: bf16[64,16]) -> bf16[16,64] {
  %t = bf16[64,16]{1,0} parameter(0)
  ROOT %turned = bf16[16,64]{1,0} transpose(%t), dimensions={1,0}
}

ENTRY %main (a: bf16[64,32], b: bf16[32,16], c: bf16[12,16]) -> bf16[16,64] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %c = bf16[12,16]{1,0} parameter(2)
  %gemm = bf16[64,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%inner
  %work = (bf16[64,16]{1,0}, f32[16]{0}) fusion(%gemm, %c), kind=kInput, calls=%elementwise, \
metadata={op_name="jit(step)/optimizer/ema/add"}
  %first = bf16[64,16]{1,0} get-tuple-element(%work), index=0
  ROOT %out = bf16[16,64]{1,0} fusion(%first), kind=kLoop, calls=%turn
}
"""

# as a scan of 12 rounds: each reads its slice of the weights and writes its slice of the outputs
SCAN = """\
HloModule scan

%write (buffer: f32[12,256], value: f32[256], weights: f32[12,256], i: s32[]) -> f32[12,256] {
  %buffer = f32[12,256]{1,0} parameter(0)
  %value = f32[256]{0} parameter(1)
  %weights = f32[12,256]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %zero = s32[] constant(0)
  %own = f32[1,256]{1,0} dynamic-slice(%weights, %i, %zero), dynamic_slice_sizes={1,256}
  %row = f32[1,256]{1,0} bitcast(%value)
  %product = f32[1,256]{1,0} multiply(%row, %own)
  ROOT %written = f32[12,256]{1,0} dynamic-update-slice(%buffer, %product, %i, %zero)
}

%body (state: (s32[], f32[12,256], f32[256], f32[12,256])) -> (s32[], f32[12,256], f32[256], f32[12,256]) {
  %state = (s32[], f32[12,256]{1,0}, f32[256]{0}, f32[12,256]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %out = f32[12,256]{1,0} get-tuple-element(%state), index=1
  %x = f32[256]{0} get-tuple-element(%state), index=2
  %w = f32[12,256]{1,0} get-tuple-element(%state), index=3
  %next = f32[12,256]{1,0} fusion(%out, %x, %w, %n), kind=kLoop, calls=%write
  ROOT %again = (s32[], f32[12,256]{1,0}, f32[256]{0}, f32[12,256]{1,0}) tuple(%n, %next, %x, %w)
}

%cond (state: (s32[], f32[12,256], f32[256], f32[12,256])) -> pred[] {
  %state = (s32[], f32[12,256]{1,0}, f32[256]{0}, f32[12,256]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %twelve = s32[] constant(12)
  ROOT %more = pred[] compare(%n, %twelve), direction=LT
}

ENTRY %main (t: (s32[], f32[12,256], f32[256], f32[12,256])) -> (s32[], f32[12,256], f32[256], f32[12,256]) {
  %t = (s32[], f32[12,256]{1,0}, f32[256]{0}, f32[12,256]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[12,256]{1,0}, f32[256]{0}, f32[12,256]{1,0}) while(%t), condition=%cond, body=%body
}
"""

ATTENTION = """\
HloModule attention

ENTRY %main (q: bf16[2,198,3,64], k: bf16[2,198,3,64], v: bf16[2,198,3,64]) -> bf16[2,3,198,64] {
  %q = bf16[2,198,3,64]{3,2,1,0} parameter(0)
  %k = bf16[2,198,3,64]{3,2,1,0} parameter(1)
  %v = bf16[2,198,3,64]{3,2,1,0} parameter(2)
  %fwd = (bf16[2,3,198,64]{3,1,2,0}, f32[2,3,198]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %v), \
custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(step)/teacher/attention/dot_product_attention_fwd"}, \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", \
"dimensions": ["2", "3", "198", "198"], "tuple_shapes": []}}}
  %o = bf16[2,3,198,64]{3,1,2,0} get-tuple-element(%fwd), index=0
  ROOT %moved = bf16[2,3,198,64]{3,2,1,0} copy(%o)
}
"""

CONVOLUTION = """\
HloModule convolution

ENTRY %main (x: bf16[2,8,8,16], w: bf16[32,3,3,16]) -> bf16[2,8,8,32] {
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %w = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %conv = (bf16[2,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  ROOT %y = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%conv), index=0
}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PRODUCT, [("products", "mlp", 1, 2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16) + 4 * 64 * 16)]),
        (
            CHAIN,
            [
                ("products", "other", 1, 2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16 + 64 * 16)),
                ("elementwise", "optimizer", 1, 0, 2 * (64 * 16 + 16 + 64 * 16) + 4 * 16),  # one bias of twelve
                ("copies", "other", 1, 0, 2 * 2 * 64 * 16),
            ],
        ),
        (SCAN, [("elementwise", "other", 12, 0, 4 * (256 + 256 + 256) + 4)]),  # value, slice, slice written; index
        (
            ATTENTION,
            [
                ("attention", "teacher", 1, 4 * 2 * 3 * 198 * 198 * 64, 4 * 2 * 2 * 3 * 198 * 64 + 4 * 2 * 3 * 198),
                ("copies", "other", 1, 0, 2 * 2 * 2 * 3 * 198 * 64),
            ],
        ),
        (CONVOLUTION, [("products", "other", 1, 2 * 2 * 64 * 32 * 144, 2 * (2 * 64 * 16 + 32 * 144 + 2 * 64 * 32))]),
    ],
    ids=["product", "chain", "scan", "attention", "convolution"],
)
def test_kernels_by_hand(text, expected):
    assert [k[1:] for k in traffic.kernels(text)] == expected


def test_the_bound_is_the_longer_of_arithmetic_and_bytes():
    computes = traffic.Kernel("a", "products", "mlp", 2, 100, 10)
    moves = traffic.Kernel("b", "copies", "mlp", 1, 0, 30)
    assert traffic.total([computes, moves], 10.0, 5.0) == (3, 50, 2 * 10 + 6)
    by_kind = traffic.totals([computes, moves], lambda k: k.kind, 10.0, 5.0)
    assert list(by_kind.items()) == [("products", (2, 20, 20)), ("copies", (1, 30, 6))]


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("jit(train_step)/transpose(jvp(jit(run_blocks)))/closed_call/attention/dot_general", "attention"),
        ("jit(train_step)/transpose(jvp(mlp))/mul", "mlp"),
        ("jit(train_step)/teacher/jit(run_blocks)/attention/dot_general", "teacher"),
        ("jit(train_step)/jit(_where)/select_n", "other"),
    ],
)
def test_parts_are_scopes(scope, part):
    assert traffic.part_of(scope) == part
