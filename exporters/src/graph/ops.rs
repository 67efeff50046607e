//! ONNX's operators as typed functions, for nodes with one output.

use super::builder::{GraphBuilder, Value};
use super::messages::Attribute::{Int, Ints};
use std::ops::Range;

impl GraphBuilder<'_> {
    /// a + b, broadcast.
    pub(crate) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Add", &[a, b], &[])
    }

    /// a − b, broadcast.
    pub(crate) fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Sub", &[a, b], &[])
    }

    /// a·b, broadcast.
    pub(crate) fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mul", &[a, b], &[])
    }

    /// a/b, broadcast; of integers, without the rest.
    pub(crate) fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Div", &[a, b], &[])
    }

    /// a modulo b, which is never negative for a positive b.
    pub(crate) fn modulo(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mod", &[a, b], &[])
    }

    /// −x.
    pub(crate) fn neg(&mut self, x: &Value) -> Value {
        self.node("Neg", &[x], &[])
    }

    /// The product of matrices, which are the last two axes.
    pub(crate) fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("MatMul", &[a, b], &[])
    }

    /// eˣ.
    pub(crate) fn exp(&mut self, x: &Value) -> Value {
        self.node("Exp", &[x], &[])
    }

    /// 1/(1 + e⁻ˣ).
    pub(crate) fn sigmoid(&mut self, x: &Value) -> Value {
        self.node("Sigmoid", &[x], &[])
    }

    /// max(x, 0).
    pub(crate) fn relu(&mut self, x: &Value) -> Value {
        self.node("Relu", &[x], &[])
    }

    /// The axes in another order.
    pub(crate) fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.node("Transpose", &[x], &[("perm", Ints(order))])
    }

    /// The same numbers in another shape, in which 0 keeps an axis and −1 is inferred.
    pub(crate) fn reshape(&mut self, x: &Value, shape: &Value) -> Value {
        self.node("Reshape", &[x, shape], &[])
    }

    /// New axes of size 1, at these places of the result.
    pub(crate) fn unsqueeze(&mut self, x: &Value, axes: &Value) -> Value {
        self.node("Unsqueeze", &[x, axes], &[])
    }

    /// Without these axes, which are of size 1.
    pub(crate) fn squeeze(&mut self, x: &Value, axes: &Value) -> Value {
        self.node("Squeeze", &[x, axes], &[])
    }

    /// The part of `x` from `start` to before `end` of an axis, each `[1]`.
    pub(crate) fn slice(&mut self, x: &Value, [start, end]: [&Value; 2], axis: &Value) -> Value {
        self.node("Slice", &[x, start, end, axis], &[])
    }

    /// Cut along the last axis into parts of these widths.
    pub(crate) fn split<const N: usize>(&mut self, x: &Value, widths: &Value) -> [Value; N] {
        self.nodes("Split", &[x, widths], &[("axis", Int(-1))])
    }

    /// Side by side along an axis.
    pub(crate) fn concat(&mut self, parts: &[&Value], axis: i64) -> Value {
        self.node("Concat", parts, &[("axis", Int(axis))])
    }

    /// The slices of an axis of `x` that `indices` say.
    pub(crate) fn gather(&mut self, x: &Value, indices: &Value, axis: i64) -> Value {
        self.node("Gather", &[x, indices], &[("axis", Int(axis))])
    }

    /// The sizes of these axes.
    pub(crate) fn sizes(&mut self, x: &Value, axes: Range<i64>) -> Value {
        self.node("Shape", &[x], &[("start", Int(axes.start)), ("end", Int(axes.end))])
    }

    /// `then` where the condition holds, `otherwise` elsewhere; broadcast.
    pub(crate) fn choose(&mut self, condition: &Value, then: &Value, otherwise: &Value) -> Value {
        self.node("Where", &[condition, then, otherwise], &[])
    }
}
