use crate::error::choose;
use crate::scoring::{TARGETS, with_scores};
use crate::{EvalError, Result, environment};
use data::{Batch, DataError, PositionIds};
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::{HasSelectedOutputs, ModelMetadata, OutputSelector, RunOptions, Session};
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, TensorRef, TensorValueType};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What a model runs on.
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

    /// Each must register or fail; ort's default would go on without. TF32 is off because it rounds float32 products
    /// to 10 bits, enough to flip an arg-max far along a count.
    fn execution_providers(self, model: &Path, shapes: Option<&Shapes>) -> Vec<ExecutionProviderDispatch> {
        let cuda = || {
            let cuda = ep::CUDA::default()
                .with_tf32(false)
                // the default doubles what it takes, and tries all algorithms anew for every shape of a convolution
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
            cuda.build().error_on_failure()
        };
        match self {
            Self::Auto | Self::Cpu => vec![],
            Self::Cuda => vec![cuda()],
            Self::TensorRt => {
                // Engines take minutes to build. They are kept beside the model, and serve all shapes up to the largest.
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
    fn offered(self) -> bool {
        match self {
            Self::Auto | Self::Cpu => true,
            Self::Cuda => ep::CUDA::is_available().unwrap_or(false),
            Self::TensorRt => ep::TensorRT::is_available().unwrap_or(false),
        }
    }

    fn missing(self, reason: String) -> EvalError {
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

/// How to load a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// What to run on.
    pub provider: Provider,
    /// CPU threads within a node; `None`: as many as this process may use.
    pub threads: Option<usize>,
}

/// What a model file says of itself, each from the metadata key of the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// The run that it was exported from.
    pub handle: Option<String>,
    /// The task it was trained on.
    pub task: Option<String>,
    /// The architecture, `lstm` for example.
    pub arch: Option<String>,
    /// The kind of positional embedding.
    pub positional_embedding: Option<String>,
    /// The tokens in id order (in the file a JSON list).
    pub vocab: Option<Vec<String>>,
    /// The longest length in training.
    pub train_max_length: Option<u32>,
    /// How position ids were augmented in training; `none` or absent where they were not.
    pub augmentation: Option<String>,
    /// Layers.
    pub num_layers: Option<u32>,
    /// Width.
    pub hidden_size: Option<u32>,
    /// The training seed.
    pub seed: Option<u64>,
    /// The checkpoint that was exported.
    pub checkpoint: Option<String>,
    /// The arithmetic, `fp32` for example.
    pub precision: Option<String>,
    /// Position ids in training were below this; limits nothing by itself.
    pub max_position_embeddings: Option<u32>,
    /// Rows of a position table: position ids must be below this. Where the file does not say it, models with absolute or
    /// sinusoidal positions have as many as `max_position_embeddings`, and others have no table.
    pub position_limit: Option<u32>,
}

impl ModelInfo {
    fn read(metadata: &ModelMetadata<'_>) -> std::result::Result<Self, String> {
        fn number<T: FromStr>(metadata: &ModelMetadata<'_>, key: &str) -> std::result::Result<Option<T>, String> {
            let Some(text) = metadata.custom(key) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| format!("its metadata `{key}` is `{text}`, not a number"))
        }
        let positional_embedding = metadata.custom("positional_embedding");
        let max_position_embeddings = number(metadata, "max_position_embeddings")?;
        let has_table = matches!(positional_embedding.as_deref(), Some("absolute" | "sinusoidal"));
        let vocab = metadata.custom("vocab").map(|text| serde_json::from_str(&text)).transpose();
        Ok(Self {
            handle: metadata.custom("handle"),
            task: metadata.custom("task"),
            arch: metadata.custom("arch"),
            positional_embedding,
            vocab: vocab.map_err(|e| format!("its metadata `vocab` is not a JSON list of tokens ({e})"))?,
            train_max_length: number(metadata, "train_max_length")?,
            augmentation: metadata.custom("augmentation"),
            num_layers: number(metadata, "num_layers")?,
            hidden_size: number(metadata, "hidden_size")?,
            seed: number(metadata, "seed")?,
            checkpoint: metadata.custom("checkpoint"),
            precision: metadata.custom("precision"),
            max_position_embeddings,
            position_limit: number(metadata, "position_limit")?.or(max_position_embeddings.filter(|_| has_table)),
        })
    }
}

/// A loaded model that keeps the ONNX contract.
pub struct Model {
    path: PathBuf,
    bytes: Vec<u8>, // of the file, with the scoring nodes behind them
    session: Session,
    pool: Vec<Session>, // further ones, see `sessions`
    info: ModelInfo,
    provider: Provider,
    fallback: Option<String>,
    threads: usize,
    interface: Arc<Interface>,
    // Only the logits are asked for: final states would be copied for nothing.
    only_logits: RunOptions<HasSelectedOutputs>,
}

impl Model {
    /// Loads an ONNX file and checks it against the contract.
    ///
    /// # Errors
    /// The file cannot be read or is no ONNX model; its inputs or outputs are not those of the contract; the provider
    /// that `options` names is not available; there is no ONNX Runtime.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Self> {
        let io = |source| DataError::Io { action: "read the model", path: path.into(), source };
        let plain = std::fs::read(path).map_err(io)?;
        environment()?;
        let size = plain.len();
        let bytes = with_scores(plain);
        // ONNX Runtime's own default counts the machine's cores, also where a container may use fewer.
        let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let contract = |reason| EvalError::Contract { path: path.into(), reason };
        let engine = |e: ort::Error| EvalError::Load { path: path.into(), reason: e.to_string() };
        let opened = match options.provider {
            Provider::Auto => open_best(path, &bytes, threads),
            explicit => open(path, &bytes, explicit, threads, None).map(|session| (session, explicit, None)),
        };
        let (session, provider, fallback) = match opened {
            Ok(opened) => opened,
            // The scoring nodes cannot be added to a model without logits; what such a model lacks says it better.
            Err(error @ EvalError::Load { .. }) => {
                let plain = open(path, &bytes[..size], Provider::Cpu, 1, None)?;
                check_outputs(plain.outputs()).map_err(contract)?;
                return Err(error);
            }
            Err(other) => return Err(other),
        };
        check_inputs(session.inputs()).map_err(contract)?;
        check_outputs(session.outputs()).map_err(contract)?;
        let info = session.metadata().map_err(engine).and_then(|m| ModelInfo::read(&m).map_err(contract))?;
        Ok(Self {
            path: path.into(),
            bytes,
            info,
            provider,
            fallback,
            threads,
            interface: Arc::new(Interface::of(&session)),
            pool: vec![],
            only_logits: RunOptions::new().map_err(engine)?.with_outputs(OutputSelector::no_default().with("logits")),
            session,
        })
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says of itself.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What it runs on; never [`Provider::Auto`].
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Why [`Provider::Auto`] went to the CPU although the library has CUDA.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The CPU threads that it may use.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// The inputs and outputs that differ between models.
    pub(crate) fn interface(&self) -> &Arc<Interface> {
        &self.interface
    }

    /// A number that changes whenever the file does.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint(self.bytes.iter().copied())
    }

    /// The size of the file.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Sessions for `count` threads that run side by side, which share the model's threads. They are kept.
    ///
    /// # Errors
    /// As [`Self::load`], if the provider has no room for them.
    pub(crate) fn sessions(&mut self, count: usize, shapes: &Shapes) -> Result<Vec<&mut Session>> {
        let shapes = (self.provider == Provider::TensorRt).then_some(shapes);
        if count == 1 && shapes.is_none() {
            return Ok(vec![&mut self.session]);
        }
        if self.pool.len() != count || shapes.is_some() {
            self.pool.clear();
            let threads = (self.threads / count).max(1);
            let open = || open(&self.path, &self.bytes, self.provider, threads, shapes);
            self.pool = std::thread::scope(|scope| {
                let opening: Vec<_> = (0..count).map(|_| scope.spawn(open)).collect();
                let opened =
                    opening.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
                opened.collect::<Result<_>>()
            })?;
        }
        Ok(self.pool.iter_mut().collect())
    }

    /// The logits at every position of `batch`. Inputs are handed over without copying.
    ///
    /// # Errors
    /// ONNX Runtime fails, out of memory for example, or the logits have another shape than `[batch, seq, vocab]`.
    pub fn run(&mut self, batch: &Batch) -> Result<Logits> {
        let failed =
            |reason: String| EvalError::Run { path: self.path.clone(), batch: batch.batch, seq: batch.seq, reason };
        let engine = |e: ort::Error| failed(e.to_string());
        let shape = [batch.batch, batch.seq];
        let tensor = |ids| TensorRef::from_array_view((shape, ids)).map_err(engine);
        let no_targets = vec![0i64; batch.batch * batch.seq];
        let mut inputs = ort::inputs! {
            "input_ids" => tensor(batch.input_ids.as_slice())?,
            TARGETS => tensor(no_targets.as_slice())?,
        };
        if self.interface.position_ids.is_some() {
            let positions = match &batch.position_ids {
                PositionIds::Integers(ids) => tensor(ids)?.into(),
                PositionIds::Scalars(values) => {
                    TensorRef::from_array_view((shape, values.as_slice())).map_err(engine)?.into()
                }
            };
            inputs.push(("position_ids".into(), positions));
        }
        if self.interface.attention_mask {
            inputs.push(("attention_mask".into(), tensor(batch.attention_mask.as_slice())?.into()));
        }
        let mut outputs = self.session.run_with_options(inputs, &self.only_logits).map_err(engine)?;
        let logits = outputs.remove("logits").ok_or_else(|| failed("it gave no logits".into()))?;
        let values = logits.downcast::<TensorValueType<f32>>().map_err(engine)?;
        match values.shape()[..] {
            [rows, columns, vocab] if (rows, columns) == (batch.batch as i64, batch.seq as i64) => {
                Ok(Logits { values, seq: batch.seq, vocab: vocab as usize })
            }
            ref other => Err(failed(format!("its logits have the shape {other:?}"))),
        }
    }

    /// [`Self::run`] in pieces of `piece` tokens, each from the recurrent states that the one before it left: all logits,
    /// `[batch, seq, vocab]` row-major.
    ///
    /// # Errors
    /// As [`Self::run`]; also where the model has no states that can be handed on, or `piece` is 0.
    pub fn run_pieces(&mut self, batch: &Batch, piece: usize) -> Result<Vec<f32>> {
        let rows = batch.batch;
        let failed = |seq, reason: String| EvalError::Run { path: self.path.clone(), batch: rows, seq, reason };
        if !self.interface.is_stateful() || piece == 0 {
            let reason = format!("it has no recurrent states by which it could go on after {piece} tokens");
            return Err(failed(batch.seq, reason));
        }
        let vocab = self.interface.vocab.unwrap_or_default();
        let mut logits = vec![0.0; rows * batch.seq * vocab]; // [batch, seq, vocab]
        let mut states: Vec<DynValue> = Vec::new();
        for start in (0..batch.seq).step_by(piece) {
            let width = piece.min(batch.seq - start);
            let engine = |e: ort::Error| failed(width, e.to_string());
            let part = batch.input_ids.chunks_exact(batch.seq).flat_map(|row| &row[start..start + width]);
            let shape = [rows, width];
            let mut inputs = ort::inputs! {
                "input_ids" => Tensor::from_array((shape, part.copied().collect::<Vec<i64>>())).map_err(engine)?,
                TARGETS => Tensor::from_array((shape, vec![0i64; rows * width])).map_err(engine)?,
            };
            for (state, value) in self.interface.states.iter().zip(states.drain(..)) {
                inputs.push((state.input.as_str().into(), value.into()));
            }
            let mut outputs = self.session.run(inputs).map_err(engine)?;
            let found = outputs.remove("logits").ok_or_else(|| failed(width, "it gave no logits".into()))?;
            let found = found.downcast::<TensorValueType<f32>>().map_err(engine)?;
            let values = found.extract_tensor().1;
            if values.len() != rows * width * vocab {
                return Err(failed(width, format!("its logits have the shape {:?}", found.shape())));
            }
            let joined = logits.chunks_exact_mut(batch.seq * vocab);
            for (row, values) in joined.zip(values.chunks_exact(width * vocab)) {
                row[start * vocab..(start + width) * vocab].copy_from_slice(values);
            }
            states = self.interface.states.iter().filter_map(|state| outputs.remove(&state.output)).collect();
        }
        Ok(logits)
    }

    /// Whether [`Self::run_pieces`] can be asked for.
    pub fn is_stateful(&self) -> bool {
        self.interface.is_stateful()
    }

    /// [`Self::run`] for bare token ids `[batch, seq]`, row-major: positions count from 0 and nothing is masked.
    ///
    /// # Errors
    /// As [`Self::run`]; also where `ids` are not batch × seq many.
    pub fn run_ids(&mut self, ids: &[i64], batch: usize, seq: usize) -> Result<Logits> {
        if ids.len() != batch * seq {
            let reason = format!("{} token ids were given", ids.len());
            return Err(EvalError::Run { path: self.path.clone(), batch, seq, reason });
        }
        self.run(&Batch {
            batch,
            seq,
            input_ids: ids.to_vec(),
            labels: vec![-1; ids.len()],
            position_ids: PositionIds::Integers((0..batch).flat_map(|_| 0..seq as i64).collect()),
            attention_mask: vec![1; ids.len()],
        })
    }
}

/// 64-bit FNV-1a: tells files and options apart from what they were before, and is the same in every build.
pub(crate) fn fingerprint(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The largest batch that is going to run, which TensorRT wants to know before it builds an engine.
pub(crate) struct Shapes {
    pub rows: usize,
    pub tokens: usize,
    pub interface: Arc<Interface>,
}

impl Shapes {
    /// `name:1x1000,…` for every input, in ONNX Runtime's notation.
    fn profile(&self, rows: usize, tokens: usize) -> String {
        let matrices = ["input_ids", TARGETS].into_iter().chain(self.interface.position_ids.map(|_| "position_ids"));
        let matrices = matrices.chain(self.interface.attention_mask.then_some("attention_mask"));
        let matrices = matrices.map(|name| format!("{name}:{rows}x{tokens}"));
        let states = self.interface.states.iter().map(|state| {
            let dims: String = state.dims.iter().map(|dim| format!("x{dim}")).collect();
            format!("{}:{rows}{dims}", state.input)
        });
        matrices.chain(states).collect::<Vec<_>>().join(",")
    }
}

/// A recurrent state, as an input that may be left out and its value after the last token.
pub(crate) struct State {
    /// `state_<name>_in`.
    pub input: String,
    /// `state_<name>_out`.
    pub output: String,
    /// All sizes but the first, which is the batch.
    dims: Vec<i64>,
}

/// The inputs and outputs that some models have and others do not.
pub(crate) struct Interface {
    /// The type of `position_ids`: int64, or float32 for scalar positions.
    pub position_ids: Option<TensorElementType>,
    /// Whether there is an `attention_mask`.
    pub attention_mask: bool,
    /// The recurrent states.
    pub states: Vec<State>,
    /// The width of the logits, where the file fixes it.
    pub vocab: Option<usize>,
}

impl Interface {
    fn of(session: &Session) -> Self {
        let input = |name: &str| session.inputs().iter().find(|i| i.name() == name);
        let states = session.overridable_initializers().into_iter().filter_map(|state| {
            let output = format!("{}_out", state.name().strip_prefix("state_").and(state.name().strip_suffix("_in"))?);
            let dims = state.dtype().tensor_shape()?.get(1..)?.to_vec();
            let found = session.outputs().iter().any(|o| o.name() == output);
            found.then(|| State { input: state.name().to_owned(), output, dims })
        });
        let logits = session.outputs().iter().find(|o| o.name() == "logits");
        let width = logits.and_then(|o| o.dtype().tensor_shape()?.get(2).copied());
        Self {
            position_ids: input("position_ids").and_then(|i| i.dtype().tensor_type()),
            attention_mask: input("attention_mask").is_some(),
            states: states.collect(),
            vocab: width.and_then(|w| usize::try_from(w).ok()),
        }
    }

    /// Whether a long sequence can be fed in pieces. Only the state may then tell a piece where it is.
    pub fn is_stateful(&self) -> bool {
        !self.states.is_empty() && self.position_ids.is_none() && !self.attention_mask
    }
}

/// The output of a pass: float32 `[batch, seq, vocab]`, in ONNX Runtime's memory.
pub struct Logits {
    values: Tensor<f32>,
    seq: usize,
    vocab: usize,
}

impl Logits {
    /// Width of a row: the size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        self.values.extract_tensor().1 // [batch, seq, vocab]
    }

    /// The values of one sequence.
    pub fn sequence(&self, row: usize) -> &[f32] {
        let size = self.seq * self.vocab;
        &self.values()[row * size..(row + 1) * size] // [seq, vocab]
    }
}

/// CUDA where it works, otherwise the CPU and, where the library promised CUDA, what came in the way.
fn open_best(path: &Path, bytes: &[u8], threads: usize) -> Result<(Session, Provider, Option<String>)> {
    let mut fallback = None;
    if Provider::Cuda.offered() {
        match open(path, bytes, Provider::Cuda, threads, None) {
            Ok(session) => return Ok((session, Provider::Cuda, None)),
            Err(EvalError::Provider { reason, .. } | EvalError::Load { reason, .. }) => fallback = Some(reason),
            Err(other) => return Err(other),
        }
    }
    Ok((open(path, bytes, Provider::Cpu, threads, None)?, Provider::Cpu, fallback))
}

/// Opens the model in `bytes`; what it keeps outside of them lies beside `path`.
fn open(path: &Path, bytes: &[u8], provider: Provider, threads: usize, shapes: Option<&Shapes>) -> Result<Session> {
    let environment = environment()?;
    if !provider.offered() {
        return Err(provider.missing("the ONNX Runtime library was built without it".into()));
    }
    let load = |e: ort::Error| EvalError::Load { path: path.into(), reason: e.to_string() };
    let folder = std::path::absolute(path).ok().and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_default();
    let mut builder = Session::builder(&environment)
        .and_then(|b| Ok(b.with_intra_threads(threads)?))
        // Memory plans are kept per input shape, and a sweep has a thousand of them.
        .and_then(|b| Ok(b.with_memory_pattern(false)?))
        .and_then(|b| Ok(b.with_config_entry(EXTERNAL_DATA, folder.to_string_lossy())?))
        .map_err(load)?
        .with_execution_providers(provider.execution_providers(path, shapes))
        .map_err(|e| provider.missing(e.to_string()))?;
    builder.commit_from_memory(bytes).map_err(load)
}

/// Where weights in files of their own are looked for, given that ONNX Runtime does not see the model's file.
const EXTERNAL_DATA: &str = "session.model_external_initializers_file_folder_path";

fn check_inputs(inputs: &[Outlet]) -> std::result::Result<(), String> {
    if !inputs.iter().any(|i| i.name() == "input_ids") {
        return Err(format!("it has no input `input_ids`, but {}", describe(inputs)));
    }
    for input in inputs {
        let (ty, shape) = (input.dtype().tensor_type(), input.dtype().tensor_shape());
        let described = describe(std::slice::from_ref(input));
        match input.name() {
            "input_ids" | "position_ids" | "attention_mask" => {}
            TARGETS => continue,
            _ => return Err(format!("it needs the input {described}, which the evaluator does not know")),
        }
        let scalar = input.name() == "position_ids" && ty == Some(TensorElementType::Float32);
        if !scalar && ty != Some(TensorElementType::Int64) || shape.is_none_or(|s| s.len() != 2) {
            return Err(format!("its input is {described} instead of int64 [batch, seq]"));
        }
        if shape.is_some_and(|s| s.iter().any(|&d| d >= 0)) {
            return Err(format!("its input {described} has fixed sizes, so it serves only those"));
        }
    }
    Ok(())
}

fn check_outputs(outputs: &[Outlet]) -> std::result::Result<(), String> {
    let Some(logits) = outputs.iter().find(|o| o.name() == "logits") else {
        return Err(format!("it has no output `logits`, but {}", describe(outputs)));
    };
    let dtype = logits.dtype();
    if dtype.tensor_type() != Some(TensorElementType::Float32) || dtype.tensor_shape().is_none_or(|s| s.len() != 3) {
        let described = describe(std::slice::from_ref(logits));
        return Err(format!("its output is {described} instead of float32 [batch, seq, vocab]"));
    }
    Ok(())
}

fn describe(outlets: &[Outlet]) -> String {
    outlets.iter().map(|o| format!("`{}` {}", o.name(), o.dtype())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensorrt_is_told_the_shape_of_every_input() {
        let state = State { input: "state_h_in".into(), output: "state_h_out".into(), dims: vec![2, 64] };
        let mut interface =
            Interface { position_ids: None, attention_mask: false, states: vec![state], vocab: Some(13) };
        let shapes = |interface| Shapes { rows: 16, tokens: 1000, interface: Arc::new(interface) };
        let profile = shapes(interface).profile(16, 1000);
        assert_eq!(profile, "input_ids:16x1000,evaluators_targets:16x1000,state_h_in:16x2x64");
        interface = Interface {
            position_ids: Some(TensorElementType::Int64),
            attention_mask: true,
            states: vec![],
            vocab: None,
        };
        assert_eq!(
            shapes(interface).profile(1, 1),
            "input_ids:1x1,evaluators_targets:1x1,position_ids:1x1,attention_mask:1x1"
        );
    }
}
