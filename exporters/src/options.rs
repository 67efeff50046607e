use crate::ExportError;
use crate::onnx::tensor_proto::DataType;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The versions of ONNX's operators that files can be written in: `Gelu` came with 20, and 23 is the newest for which
/// no operator in use has changed.
pub const OPSETS: RangeInclusive<i64> = 20..=23;

/// The precision of an exported model.
///
/// Below fp32, the matrices are stored in half the bytes and the products with them are computed in that type, from
/// narrowed activations; states, norms, attention scores and logits stay in float32, as under PyTorch's autocast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// IEEE single precision throughout.
    #[default]
    Fp32,
    /// Products in IEEE half precision.
    Fp16,
    /// Products in bfloat16.
    Bf16,
}

impl Precision {
    /// The name in options and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }

    /// The nearest number that this precision has.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::Fp32 => value,
            Self::Fp16 => half::f16::from_f32(value).to_f32(),
            Self::Bf16 => half::bf16::from_f32(value).to_f32(),
        }
    }

    pub(crate) fn element(self) -> DataType {
        match self {
            Self::Fp32 => DataType::Float,
            Self::Fp16 => DataType::Float16,
            Self::Bf16 => DataType::Bfloat16,
        }
    }
}

impl FromStr for Precision {
    type Err = ExportError;

    fn from_str(name: &str) -> Result<Self, ExportError> {
        let all = [Self::Fp32, Self::Fp16, Self::Bf16];
        all.into_iter().find(|p| p.name() == name).ok_or_else(|| ExportError::Precision { name: name.to_owned() })
    }
}

/// The program that a file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// Every program that reads ONNX: standard operators only.
    #[default]
    Portable,
    /// ONNX Runtime (1.25 or later), fastest on a CPU: its own operators for matrix states, and attention in
    /// blocks of queries.
    Ort,
}

impl Target {
    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Ort => "ort",
        }
    }
}

impl FromStr for Target {
    type Err = ExportError;

    fn from_str(name: &str) -> Result<Self, ExportError> {
        let all = [Self::Portable, Self::Ort];
        all.into_iter().find(|t| t.name() == name).ok_or_else(|| ExportError::Target { name: name.to_owned() })
    }
}

/// How a file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// The precision of products.
    pub precision: Precision,
    /// The version of ONNX's operators, one of [`OPSETS`]. The default is the newest that every TensorRT 10 reads.
    pub opset: i64,
    /// The program that the file is written for.
    pub target: Target,
    /// Whether products are computed in float32 although the matrices are stored in less. ONNX Runtime's CPU provider
    /// has no bfloat16 products, so that this is how a bf16 file can be checked there.
    pub float32_products: bool,
    /// A message with more bytes has its weights in a second file; protobuf allows `i32::MAX`.
    pub largest_message: usize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            precision: Precision::Fp32,
            opset: 20,
            target: Target::Portable,
            float32_products: false,
            largest_message: i32::MAX as usize,
        }
    }
}

impl ExportOptions {
    pub(crate) fn validate(&self) -> Result<(), ExportError> {
        if OPSETS.contains(&self.opset) {
            return Ok(());
        }
        Err(ExportError::Opset { found: self.opset, known: OPSETS })
    }
}
