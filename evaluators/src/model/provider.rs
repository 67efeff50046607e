//! Execution providers: the choice, and how ONNX Runtime's are set up.

use crate::error::choose;
use crate::model::contract::Shapes;
use crate::{EvalError, Result};
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};
use std::path::Path;
use std::str::FromStr;

/// The provider that a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// CUDA where the library has it and it works for the model, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU through CUDA, or an error.
    Cuda,
    /// An NVIDIA GPU through TensorRT (what TensorRT cannot run goes to CUDA), or an error.
    TensorRt,
}

impl Provider {
    const NAMES: [(&str, Self); 4] =
        [("auto", Self::Auto), ("cpu", Self::Cpu), ("cuda", Self::Cuda), ("tensorrt", Self::TensorRt)];

    /// The name in options and result tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }

    /// Each must register or fail; ort's default would continue without it. TF32 is off because it rounds float32
    /// products to 10 bits, enough to flip an argmax far along a count.
    pub(super) fn execution_providers(self, model: &Path, shapes: Option<&Shapes>) -> Vec<ExecutionProviderDispatch> {
        let cuda = || {
            let cuda = ep::CUDA::default()
                .with_tf32(false)
                // the default doubles its allocations, and tries all algorithms again for every shape of a convolution
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
            cuda.build().error_on_failure()
        };
        match self {
            Self::Auto | Self::Cpu => vec![],
            Self::Cuda => vec![cuda()],
            Self::TensorRt => {
                // Engines take minutes to build. They are kept beside the model, and serve all shapes up to the
                // largest.
                let cache = model.with_file_name("tensorrt");
                let cache = cache.to_string_lossy();
                let mut tensorrt = ep::TensorRT::default()
                    .with_engine_cache(true)
                    .with_engine_cache_path(&cache)
                    .with_timing_cache(true)
                    .with_timing_cache_path(&cache);
                if let Some(shapes) = shapes {
                    tensorrt = tensorrt
                        .with_profile_min_shapes(shapes.profile(1, 1))
                        .with_profile_opt_shapes(shapes.profile(shapes.rows, shapes.tokens))
                        .with_profile_max_shapes(shapes.profile(shapes.rows, shapes.tokens));
                }
                vec![tensorrt.build().error_on_failure(), cuda()]
            }
        }
    }

    /// Whether the loaded library was built with this provider.
    pub(super) fn offered(self) -> bool {
        match self {
            Self::Auto | Self::Cpu => true,
            Self::Cuda => ep::CUDA::is_available().unwrap_or(false),
            Self::TensorRt => ep::TensorRT::is_available().unwrap_or(false),
        }
    }

    pub(super) fn missing(self, reason: String) -> EvalError {
        let libraries = match self {
            Self::TensorRt => "TensorRT, CUDA and cuDNN",
            _ => "CUDA and cuDNN",
        };
        let hint = format!(
            "`pip install onnxruntime-gpu[cuda,cudnn]` in place of onnxruntime and point ORT_DYLIB_PATH at the library in \
             its capi folder; that takes {libraries} from pip's packages or LD_LIBRARY_PATH, and needs an NVIDIA driver; \
             or choose --provider cpu"
        );
        EvalError::Provider { provider: self.name(), reason, hint }
    }
}

impl FromStr for Provider {
    type Err = EvalError;

    fn from_str(name: &str) -> Result<Self> {
        choose("provider", name, &Self::NAMES)
    }
}

impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
