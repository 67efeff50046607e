//! Execution providers: the choice, and how ONNX Runtime's are set up.

use crate::error::choose;
use crate::model::contract::Shapes;
use crate::runtime::plugins::{self, Plugin};
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
    /// An NVIDIA RTX GPU through the plugin of TensorRT for RTX, or an error.
    TensorRtRtx,
    /// A processor of Intel or AMD through the plugin of OpenVINO, in float32, or an error.
    OpenVino,
    /// A plugin that [`load_provider_library`](crate::load_provider_library) has loaded, by ONNX Runtime's name for its provider.
    Library(&'static str),
}

impl Provider {
    const NAMES: [(&str, Self); 6] = [
        ("auto", Self::Auto),
        ("cpu", Self::Cpu),
        ("cuda", Self::Cuda),
        ("tensorrt", Self::TensorRt),
        ("tensorrt-rtx", Self::TensorRtRtx),
        ("openvino", Self::OpenVino),
    ];

    /// The name in options and result tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::TensorRtRtx => "tensorrt-rtx",
            Self::OpenVino => "openvino",
            Self::Library(engine) => engine,
        }
    }

    /// The plugin, where it is one that is known by name.
    pub(crate) fn plugin(self) -> Option<&'static Plugin> {
        match self {
            Self::OpenVino => Some(&plugins::OPENVINO),
            Self::TensorRtRtx => Some(&plugins::TENSORRT_RTX),
            _ => None,
        }
    }

    /// Whether it is a library of its own.
    pub(crate) fn is_plugin(self) -> bool {
        matches!(self, Self::OpenVino | Self::TensorRtRtx | Self::Library(_))
    }

    /// ONNX Runtime's name for a plugin's provider.
    pub(crate) fn engine(self) -> &'static str {
        self.plugin().map_or_else(|| self.name(), |plugin| plugin.engine)
    }

    /// Whether it runs on the CPU, in the machine's own memory.
    pub(crate) fn is_cpu(self) -> bool {
        matches!(self, Self::Auto | Self::Cpu | Self::OpenVino)
    }

    /// Options of a plugin, with ONNX Runtime's prefix. OpenVINO computes in bfloat16 where the processor has it, unless
    /// it is told otherwise.
    pub(super) fn plugin_options(self, threads: usize) -> Vec<(String, String)> {
        let option = |key: &str, value: String| vec![(format!("{}.{key}", self.engine()), value)];
        match self {
            Self::OpenVino => {
                let cpu = serde_json::json!({
                    "INFERENCE_PRECISION_HINT": "f32",
                    "INFERENCE_NUM_THREADS": threads.to_string(),
                    "NUM_STREAMS": "1",
                });
                option("load_config", serde_json::json!({ "CPU": cpu }).to_string())
            }
            _ => vec![],
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
            Self::Auto | Self::Cpu | Self::TensorRtRtx | Self::OpenVino | Self::Library(_) => vec![],
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

    /// Whether the loaded library was built with this provider; plugins come by themselves.
    pub(super) fn offered(self) -> bool {
        match self {
            Self::Auto | Self::Cpu | Self::TensorRtRtx | Self::OpenVino | Self::Library(_) => true,
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
