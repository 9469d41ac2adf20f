"""XLA's program as text: products, bytes and parts of the model of its operations; the time of each."""

import jax
import jax.numpy as jnp
import pytest

from zerotollm.planning.hlo import NORMS, OTHER, Product, module_name, operations, part_of, type_bytes
from zerotollm.session.step_times import longest_table, operation_times, part_table, part_times


@jax.jit
def gradient(x_TD, kernel_DF):
    def loss(kernel_DF):
        with jax.named_scope("feed_forward"):
            return jnp.sum(jnp.square(x_TD @ kernel_DF))

    return jax.grad(loss)(kernel_DF)


def test_a_program_has_the_products_of_its_code():
    hlo = gradient.lower(jnp.ones((32, 8)), jnp.ones((8, 16))).compile().as_text()
    assert module_name(hlo) == "jit_gradient"
    found = [operation for operation in operations(hlo).values() if operation.products]
    assert sorted((o.part, o.backward, o.flops) for o in found) == [
        ("feed-forward", False, 2 * 32 * 8 * 16),
        ("feed-forward", True, 2 * 32 * 8 * 16),
    ]
    assert {str(o) for o in found if not o.backward} == {"32 x 16 over 8"}


def test_a_fusion_has_the_products_inside_and_moves_its_operands_and_result():
    hlo = """HloModule jit_step, is_scheduled=true

%fused (a: f32[2,4,8], b: bf16[2,8,3]) -> f32[2,4,3] {
  %a = f32[2,4,8]{2,1,0} parameter(0)
  %b = bf16[2,8,3]{2,1,0} parameter(1)
  ROOT %d = f32[2,4,3]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}

ENTRY %main (x: f32[2,4,8], y: bf16[2,8,3]) -> f32[2,4,3] {
  %x = f32[2,4,8]{2,1,0} parameter(0)
  %y = bf16[2,8,3]{2,1,0} parameter(1)
  %copy.1 = f32[2,4,8]{1,2,0} copy(%x), metadata={op_name="jit(step)/optimizer/copy"}
  ROOT %fusion.7 = f32[2,4,3]{2,1,0} fusion(%copy.1, %y), kind=kCustom, calls=%fused, metadata={op_name="jit(step)/transpose(jvp(Transformer))/Transformer.forward/layer_1/attention/attention.attend/mix_values/dot_general"}
}
"""  # noqa: E501  XLA prints an operation a line
    found = operations(hlo)
    fusion = found["fusion.7"]
    assert fusion.products == (Product((2, 4, 8), (2, 8, 3), (2, 4, 3), ((2,), (1,)), ((0,), (0,))),)
    assert (str(fusion), fusion.flops) == ("4 x 3 over 8, 2 times", 2 * 2 * 4 * 3 * 8)
    assert (fusion.part, fusion.backward) == ("attention: scores, mixing", True)
    assert fusion.moved == 4 * 64 + 2 * 48 + 4 * 24
    assert (found["copy.1"].part, found["copy.1"].moved) == ("optimizer", 2 * 4 * 64)
    assert "d" not in found


def test_products_in_a_librarys_call_are_read():
    hlo = """HloModule jit_step

ENTRY %main (x: bf16[64,32], y: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %y = bf16[32,16]{1,0} parameter(1)
  %gemm.1 = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%x, %y), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/jvp(loss)/head/dot_general"}, backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
}
"""  # noqa: E501  XLA prints an operation a line
    gemm = operations(hlo)["gemm.1"]
    assert (gemm.part, gemm.flops, str(gemm)) == ("head", 2 * 64 * 16 * 32, "64 x 16 over 32")


@pytest.mark.parametrize(
    ("scopes", "part"),
    [
        ("jit(train_step)/jvp(Transformer)/Transformer.forward/layer_2/feed_forward_norm/mul", NORMS),
        ("jit(train_step)/jvp(Transformer)/Transformer.forward/layer_2/attention/rope/add", "rope"),
        ("jit(train_step)/jvp(Transformer)/Transformer.forward/layer_2/add", OTHER),
        ("jit(train_step)/jvp(Transformer)/Transformer.embed/gather", "embedding"),
        ("jit(train_step)/jvp(loss)/exp", "loss"),
        ("jit(train_step)/optimizer/add", "optimizer"),
        ("jit(train_step)/jvp(T)/decoder/layer_0/cross_attention/dot_general", "attention: projections"),
        ("", OTHER),
    ],
)
def test_a_part_is_named_by_the_scopes(scopes, part):
    assert part_of(scopes) == part


def test_a_type_has_the_bytes_of_its_arrays():
    assert type_bytes("(f32[4,8]{1,0}, bf16[3]{0}, pred[])") == [128, 6, 1]


def test_times_are_means_over_the_steps_and_add_up():
    hlo = gradient.lower(jnp.ones((32, 8)), jnp.ones((8, 16))).compile().as_text()
    names = list(operations(hlo))

    def event(step, name, microseconds, module="jit_gradient"):
        arguments = {"hlo_module": module, "hlo_op": name, "run_id": str(step)}
        return {"ph": "X", "ts": 0.0, "dur": microseconds, "name": name, "args": arguments}

    events = [event(step, name, 2.0 + step) for step in range(3) for name in names]
    events += [event(9, names[0], 1e6, "jit_other"), {"ph": "M", "name": "x"}, event(0, "unknown", 5.0)]
    times = operation_times(events, "jit_gradient", operations(hlo))
    assert [round(time.seconds, 9) for time in times] == [3e-6] * len(names)
    parts = part_times(times)
    assert sum(part.seconds for part in parts.values()) == pytest.approx(3e-6 * len(names))
    assert parts["feed-forward"].flops == 2 * 2 * 32 * 8 * 16
    assert parts["feed-forward"].backward > 0
    assert part_table(parts, 1e9, 1e9).row_count == len(parts) + 1
    assert longest_table(times).row_count
    assert operation_times(events, "jit_absent", operations(hlo)) == []
