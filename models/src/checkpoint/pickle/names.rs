//! The names that a pickle may use.

use safetensors::tensor::Dtype;

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Global {
    Dict,
    RebuildTensor,
    /// The same with the type of the numbers as the last argument.
    RebuildTyped,
    RebuildParameter,
    /// A nested call: a tensor with attributes.
    RebuildFromType,
    /// A tensor without dense numbers.
    Strange(&'static str),
    Storage(Option<Dtype>),
    Dtype(Option<Dtype>),
    /// A number, a shape, a device, a set: nothing that could hold a tensor of a model.
    Plain,
    Unknown,
}

impl Global {
    pub(super) fn new(module: &str, name: &str) -> Self {
        match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") => Self::Dict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTyped,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch._utils", "_rebuild_sparse_tensor") => Self::Strange("a sparse tensor"),
            ("torch._utils", "_rebuild_qtensor") => Self::Strange("a quantised tensor"),
            ("torch._utils", "_rebuild_nested_tensor") => Self::Strange("a nested tensor"),
            ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
                Self::Strange("a tensor on the device `meta`, which has no numbers")
            }
            ("torch", storage) if storage.ends_with("Storage") => match storage {
                "DoubleStorage" => Self::Storage(Some(Dtype::F64)),
                "FloatStorage" => Self::Storage(Some(Dtype::F32)),
                "HalfStorage" => Self::Storage(Some(Dtype::F16)),
                "BFloat16Storage" => Self::Storage(Some(Dtype::BF16)),
                "LongStorage" => Self::Storage(Some(Dtype::I64)),
                "IntStorage" => Self::Storage(Some(Dtype::I32)),
                "ShortStorage" => Self::Storage(Some(Dtype::I16)),
                "CharStorage" => Self::Storage(Some(Dtype::I8)),
                "ByteStorage" => Self::Storage(Some(Dtype::U8)),
                "BoolStorage" => Self::Storage(Some(Dtype::BOOL)),
                "UntypedStorage"
                | "ComplexFloatStorage"
                | "ComplexDoubleStorage"
                | "QInt8Storage"
                | "QInt32Storage"
                | "QUInt8Storage"
                | "QUInt4x2Storage"
                | "QUInt2x4Storage" => Self::Storage(None),
                _ => Self::Unknown,
            },
            ("torch.storage", "UntypedStorage") => Self::Storage(None),
            ("torch", name) => match name {
                "float64" | "double" => Self::Dtype(Some(Dtype::F64)),
                "float32" | "float" => Self::Dtype(Some(Dtype::F32)),
                "float16" | "half" => Self::Dtype(Some(Dtype::F16)),
                "bfloat16" => Self::Dtype(Some(Dtype::BF16)),
                "int64" | "long" => Self::Dtype(Some(Dtype::I64)),
                "int32" | "int" => Self::Dtype(Some(Dtype::I32)),
                "int16" | "short" => Self::Dtype(Some(Dtype::I16)),
                "int8" => Self::Dtype(Some(Dtype::I8)),
                "uint8" => Self::Dtype(Some(Dtype::U8)),
                "bool" => Self::Dtype(Some(Dtype::BOOL)),
                "uint16" | "uint32" | "uint64" | "complex32" | "complex64" | "complex128" | "chalf" | "cfloat"
                | "cdouble" | "qint8" | "qint32" | "quint8" | "quint4x2" | "float8_e4m3fn" | "float8_e4m3fnuz"
                | "float8_e5m2" | "float8_e5m2fnuz" | "float8_e8m0fnu" | "float4_e2m1fn_x2" => Self::Dtype(None),
                "Size" | "device" | "Tensor" | "strided" | "contiguous_format" | "preserve_format" => Self::Plain,
                _ => Self::Unknown,
            },
            ("torch.nn.parameter", "Parameter" | "Buffer")
            | ("torch.serialization", "_get_layout")
            | ("collections", "Counter" | "deque")
            | ("_codecs", "encode")
            | ("numpy", "dtype" | "ndarray")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct") => Self::Plain,
            (
                "builtins" | "__builtin__",
                "set" | "frozenset" | "dict" | "list" | "tuple" | "int" | "float" | "bool" | "str" | "bytes"
                | "bytearray" | "complex" | "slice" | "range",
            ) => Self::Plain,
            _ => Self::Unknown,
        }
    }
}
