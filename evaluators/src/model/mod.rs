//! The model: an ONNX file, the session that runs it, its inputs and outputs.

pub(crate) mod contract;
pub(crate) mod engine;
mod external;
mod feeds;
pub(crate) mod fingerprint;
mod info;
mod load;
mod proto;
mod provider;
pub(crate) mod scoring;

use crate::model::contract::{ITERATIONS, Interface, Shapes, State, check_sizes};
use crate::model::engine::{Engine, width};
use crate::model::external::Source;
use crate::model::feeds::Feed;
use crate::model::fingerprint::{graph_fingerprint, is_earlier_export, is_own_export, of_source};
use crate::model::load::{File, open, open_best};
use crate::model::scoring::{OLDEST_OPSET, Output, TARGETS, blame, with_scores};
use crate::{EvalError, Result, environment};
use data::{Batch, PositionIds};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::{DynValue, Tensor, TensorValueType};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use info::ModelInfo;
pub use provider::Provider;

/// How to load a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The provider to run on.
    pub provider: Provider,
    /// CPU threads within a node; `None`: as many as this process may use.
    pub threads: Option<usize>,
}

/// The file that `pipeline export` has written beside the model at `path`: the same model with its recurrent states as inputs and
/// outputs, so that it does all that the other one does, and long sequences in pieces, too. `None` where there is none, or where
/// somebody has changed the model since it was exported.
///
/// # Errors
/// A note: the file beside it is not the one that was exported with it.
fn stateful_twin(path: &Path, model: &[u8]) -> std::result::Result<Option<Source>, String> {
    let said = |key| proto::metadata(model, key);
    let has_graph =
        |model: &[u8], wanted| graph_fingerprint(model).is_some_and(|g| Some(&*format!("{g:016x}")) == wanted);
    let Some(wanted) = said("stateful_fingerprint").filter(|_| has_graph(model, said("graph_fingerprint"))) else {
        return Ok(None);
    };
    let twin = path.with_extension("stateful.onnx");
    if !twin.is_file() {
        return Ok(None);
    }
    // Weights in files of their own are no part of a graph.
    let is_of_it = |twin: &[u8]| {
        has_graph(twin, Some(wanted)) && proto::metadata(twin, "checkpoint_checksum") == said("checkpoint_checksum")
    };
    let source = Source::read(&twin).ok().filter(|source| is_of_it(&source.model));
    let name = twin.file_name().unwrap_or_default().to_string_lossy().into_owned();
    source.map(Some).ok_or_else(|| format!("{name} beside it is not of the same export, and is not used"))
}

/// The files that a model is known by, also where the session runs the one with its states.
struct Files {
    fingerprint: String,
    /// In bytes.
    size: usize,
}

impl Files {
    fn of(source: &Source) -> Result<Self> {
        Ok(Self { fingerprint: of_source(source)?, size: source.size() })
    }
}

/// A loaded model that keeps the ONNX contract.
pub struct Model {
    path: PathBuf,
    bytes: Vec<u8>,  // of the file, followed by the scoring nodes
    length: usize,   // of the bytes without them
    folder: PathBuf, // of its other files
    fingerprint: Option<String>,
    size: usize, // of all its files
    notes: Vec<String>,
    engine: Engine,
    pool: Vec<Engine>, // further ones, see `engines`
    info: ModelInfo,
    provider: Provider,
    fallback: Option<String>,
    threads: usize,
    interface: Arc<Interface>,
    own_export: bool,
    earlier_export: bool,
    // Only the logits are requested: final states would be copied in vain.
    only_logits: Option<RunOptions<HasSelectedOutputs>>,
}

/// Functions do not say how large they are: taken for a small network's size, by which the effort of a probe is measured.
const FUNCTION_BYTES: usize = 1 << 20;

impl Model {
    /// Loads an ONNX file and checks it against the contract.
    ///
    /// # Errors
    /// The file cannot be read or is not an ONNX model; its inputs or outputs are not those of the contract; the
    /// provider that `options` names is not available; there is no ONNX Runtime.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Self> {
        Self::load_with_logits(path, options, None)
    }

    /// [`Self::load`], but for the file itself, although there may be one with its recurrent states beside it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_alone(path: &Path, options: LoadOptions) -> Result<Self> {
        let source = Source::read(path)?;
        let files = Files::of(&source)?;
        Self::load_source(path, source, files, options, None, vec![])
    }

    /// [`Self::load`] for a model with several outputs: `logits` names the one with the logits. By default that is the one
    /// called `logits`, or the only one with three dimensions.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_logits(path: &Path, options: LoadOptions, logits: Option<&str>) -> Result<Self> {
        let source = Source::read(path)?;
        let files = Files::of(&source)?;
        let (source, notes) = match stateful_twin(path, &source.model) {
            Ok(twin) => (twin.unwrap_or(source), vec![]),
            Err(note) => (source, vec![note]),
        };
        Self::load_source(path, source, files, options, logits, notes)
    }

    /// [`Self::load_with_logits`] for a file in memory, a serialized `ModelProto`. Messages call it `name`.
    ///
    /// # Errors
    /// As [`Self::load`]; also where its weights are in files of their own.
    pub fn from_bytes(name: &str, bytes: Vec<u8>, options: LoadOptions, logits: Option<&str>) -> Result<Self> {
        let path = Path::new(name);
        let source = Source::of_bytes(path, bytes)?;
        let files = Files::of(&source)?;
        Self::load_source(path, source, files, options, logits, vec![])
    }

    /// A model that is a function instead of a file: `forward` gets a [`Batch`] of token ids `[batch, seq]` and returns
    /// logits `[batch, seq, vocab]`, row-major, or says why there are none. `info` takes the place of a file's metadata.
    /// It is probed and swept like an ONNX file, one batch at a time, from a thread of its own; where it fails on long
    /// sequences, the rows of those lengths get its message as status. Messages call it `name`, result tables `function`
    /// in the column `provider`.
    ///
    /// ```no_run
    /// use evaluators::{Model, ModelInfo, Sweep};
    /// let task = data::Task::by_name("chomsky/parity_check")?;
    /// let width = task.vocabulary.len();
    /// let uniform = move |batch: &data::Batch| Ok(vec![0.0; batch.batch * batch.seq * width]);
    /// let mut model = Model::from_function("uniform", ModelInfo::default(), uniform);
    /// let table = Sweep::new(&mut model).task(&task).lengths(1..=100).run()?;
    /// # Ok::<(), evaluators::EvalError>(())
    /// ```
    pub fn from_function(
        name: &str,
        info: ModelInfo,
        forward: impl FnMut(&Batch) -> std::result::Result<Vec<f32>, String> + Send + 'static,
    ) -> Self {
        Self {
            path: name.into(),
            bytes: vec![],
            length: 0,
            folder: PathBuf::new(),
            fingerprint: None,
            size: FUNCTION_BYTES,
            notes: vec![],
            engine: Engine::Function(Box::new(forward)),
            pool: vec![],
            info,
            provider: Provider::Cpu,
            fallback: None,
            threads: 1,
            interface: Arc::new(Interface::of_function()),
            own_export: false,
            earlier_export: false,
            only_logits: None,
        }
    }

    /// The same model in a session on the CPU.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn on_cpu(&self) -> Result<Self> {
        let options = LoadOptions { provider: Provider::Cpu, threads: Some(self.threads) };
        let source = Source::in_folder(self.bytes[..self.length].to_vec(), self.folder.clone());
        let files = Files { fingerprint: self.fingerprint.clone().unwrap_or_default(), size: self.size };
        let loaded = Self::load_source(&self.path, source, files, options, Some(&self.interface.output.name), vec![]);
        loaded.and_then(|mut model| {
            self.iterations().map_or(Ok(()), |iterations| model.set_iterations(iterations))?;
            Ok(model)
        })
    }

    fn load_source(
        path: &Path,
        source: Source,
        Files { fingerprint, size }: Files,
        options: LoadOptions,
        logits: Option<&str>,
        mut notes: Vec<String>,
    ) -> Result<Self> {
        environment()?;
        let graph = graph_fingerprint(&source.model);
        let (mut bytes, folder) = source.place();
        let length = bytes.len();
        // ONNX Runtime's own default counts the machine's cores, also where a container may use fewer.
        let threads = options.threads.unwrap_or_else(data::threads::available).max(1);
        let contract = |reason| EvalError::Contract { path: path.into(), reason };
        let engine = |e: ort::Error| EvalError::Load { path: path.into(), reason: e.to_string() };
        let start = |bytes: &[u8]| {
            let file = File { path, bytes, folder: &folder };
            match options.provider {
                Provider::Auto => open_best(file, threads),
                explicit => open(file, explicit, threads, None).map(|session| (session, explicit, None)),
            }
        };
        let plain =
            |bytes: &[u8]| open(File { path, bytes: &bytes[..length], folder: &folder }, Provider::Cpu, 1, None);
        let choose = |session: &Session| feeds::logits(session.outputs(), logits).map_err(contract);
        // The file's metadata is enough for models like our own; others are opened once more, as they are.
        let float = proto::output_type(&bytes, "logits") == Some(1); // TensorProto.DataType.FLOAT
        let (mut output, note) = match logits.is_none_or(|name| name == "logits") && float {
            true => (Output { name: "logits".into(), single: true, scored: true }, None),
            false => choose(&plain(&bytes)?)?,
        };
        output.scored = proto::opset(&bytes).is_none_or(|version| version >= OLDEST_OPSET);
        bytes = with_scores(bytes, &output);
        let (session, provider, fallback) = match start(&bytes) {
            Ok(opened) => opened,
            // Either the model is at fault, which shows best without our nodes, or it does not work with them.
            Err(EvalError::Load { .. }) => {
                choose(&plain(&bytes)?)?;
                output.scored = false;
                bytes.truncate(length);
                bytes = with_scores(bytes, &output);
                start(&bytes)?
            }
            Err(other) => return Err(other),
        };
        let states = State::of(&session);
        let ignored: Vec<&str> = states.iter().map(|state| state.input.as_str()).chain([TARGETS, ITERATIONS]).collect();
        let (feeds, more) = Feed::of(session.inputs(), &ignored).map_err(contract)?;
        check_sizes(session.inputs()).map_err(contract)?;
        choose(&session)?;
        notes.extend(more.into_iter().chain(note));
        let info = session.metadata().map_err(engine).and_then(|m| ModelInfo::read(&m).map_err(contract))?;
        let mut interface = Interface::of(&session, feeds, states, output.clone());
        if let (Some((iterations, _)), Some(trained)) =
            (&mut interface.iterations, info.iterations.filter(|number| *number > 0))
        {
            *iterations = trained;
        }
        let own_export = session.metadata().is_ok_and(|m| is_own_export(&m, graph));
        let earlier_export = session.metadata().is_ok_and(|m| is_earlier_export(&m));
        Ok(Self {
            path: path.into(),
            bytes,
            length,
            folder,
            fingerprint: Some(fingerprint),
            size,
            notes,
            info,
            own_export,
            earlier_export,
            provider,
            fallback,
            threads,
            pool: vec![],
            only_logits: Some(only_logits(&output, path)?),
            interface: Arc::new(interface),
            engine: session.into(),
        })
    }

    /// The file it was loaded from, or the name it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's metadata.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Whether `pipeline export` wrote the file and nothing has changed its graph since. Such models are causal, where their
    /// [metadata](ModelInfo::causal) does not say otherwise, and their outputs depend neither on padding nor on other rows of the batch; the project's tests check that. Other
    /// models are probed with [`Sweep::probe`](crate::Sweep::probe).
    pub fn is_own_export(&self) -> bool {
        self.own_export
    }

    /// Whether an earlier version of `pipeline export` wrote the file. It left no fingerprint of the graph, so such a
    /// model is probed like any other.
    pub fn is_earlier_export(&self) -> bool {
        self.earlier_export
    }

    /// How often a looped model applies its blocks: as often as in training, or as
    /// [`set_iterations`](Self::set_iterations) says. `None` for models that are not looped.
    pub fn iterations(&self) -> Option<u32> {
        self.interface.iterations.map(|(iterations, _)| iterations)
    }

    /// Makes a looped model apply its blocks so many times from now on.
    ///
    /// # Errors
    /// The model is not looped, or the number is 0.
    pub fn set_iterations(&mut self, iterations: u32) -> Result<()> {
        let refused = |reason| Err(EvalError::Iterations { path: self.path.clone(), iterations, reason });
        if iterations == 0 {
            return refused("there would be no model left\n  hint: choose 1 or more");
        }
        let mut interface = (*self.interface).clone();
        match &mut interface.iterations {
            Some((number, _)) => *number = iterations,
            None => {
                return refused(
                    "it is not looped, so that it has no input `iterations`\n  hint: leave the number out; models are looped whose config sets model.iterations",
                );
            }
        }
        self.interface = Arc::new(interface);
        Ok(())
    }

    /// The number of tokens of a sequence, where the file fixes it.
    pub(crate) fn fixed_tokens(&self) -> Option<usize> {
        let input = self.engine.session()?.inputs().iter().find(|input| input.name() == "input_ids")?;
        usize::try_from(*input.dtype().tensor_shape()?.get(1)?).ok()
    }

    /// The provider it runs on; never [`Provider::Auto`].
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Why [`Provider::Auto`] went to the CPU although the library has CUDA.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Notes for people on how the model was interpreted: which input gets the tokens, for example.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The CPU threads that it may use.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// The inputs and outputs that differ between models.
    pub(crate) fn interface(&self) -> &Arc<Interface> {
        &self.interface
    }

    /// The [`crate::model_fingerprint`] of the files that it was loaded from; `None` for a function.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Where it runs, for the column `provider` of result tables: the provider, or `function`.
    pub(crate) fn place(&self) -> String {
        match &self.engine {
            Engine::Session(_) => self.provider.to_string(),
            Engine::Function(_) => "function".to_owned(),
        }
    }

    /// The size of its files.
    pub(crate) fn bytes(&self) -> usize {
        self.size
    }

    /// Engines for up to `count` threads that run side by side, which share the model's threads. They are kept. Where
    /// the system has no threads for that many, there is one; there is only ever one of a function.
    ///
    /// # Errors
    /// As [`Self::load`], if the provider has no room for them.
    pub(crate) fn engines(&mut self, count: usize, shapes: &Shapes) -> Result<Vec<&mut Engine>> {
        let shapes = (self.provider == Provider::TensorRt).then_some(shapes);
        if count == 1 && shapes.is_none() || self.engine.session().is_none() {
            return Ok(vec![&mut self.engine]);
        }
        if self.pool.len() != count || shapes.is_some() {
            self.pool.clear();
            let threads = (self.threads / count).max(1);
            let file = File { path: &self.path, bytes: &self.bytes, folder: &self.folder };
            let open = || open(file, self.provider, threads, shapes);
            let opened = data::threads::all((0..count).map(|_| open));
            self.pool = opened
                .into_iter()
                .map(|one| one.unwrap_or_else(|panic| resume_unwind(panic)).map(Engine::from))
                .collect::<Result<_>>()?;
        }
        Ok(self.pool.iter_mut().collect())
    }

    /// The logits at every position of `batch`.
    ///
    /// # Errors
    /// The model fails, out of memory for example, or the logits have another shape than `[batch, seq, vocab]`.
    pub fn run(&mut self, batch: &Batch) -> Result<Logits> {
        run(&mut self.engine, self.only_logits.as_ref(), &self.interface, &self.path, batch)
    }

    /// [`Self::run`] for threads side by side: one for each of [`Self::engines`].
    ///
    /// # Errors
    /// As [`Self::engines`].
    pub(crate) fn runners(&mut self, count: usize, shapes: &Shapes) -> Result<Vec<Runner<'_>>> {
        let (path, interface) = (self.path.clone(), self.interface.clone());
        let mut runners = Vec::new();
        for engine in self.engines(count, shapes)? {
            let only_logits = engine.session().map(|_| only_logits(&interface.output, &path)).transpose()?;
            runners.push(Runner { path: path.clone(), engine, interface: interface.clone(), only_logits });
        }
        Ok(runners)
    }

    /// [`Self::run`] in pieces of `piece` tokens, each from the recurrent states of the one before: all logits,
    /// `[batch, seq, vocab]` row-major.
    ///
    /// # Errors
    /// As [`Self::run`]; also where the model has no states to carry over, or `piece` is 0.
    pub fn run_pieces(&mut self, batch: &Batch, piece: usize) -> Result<Vec<f32>> {
        let rows = batch.batch;
        let failed = |seq, reason: String| EvalError::Run { path: self.path.clone(), batch: rows, seq, reason };
        let session = match &mut self.engine {
            Engine::Session(session) if self.interface.is_stateful() && piece > 0 => session,
            _ => {
                let reason = format!("it has no recurrent states by which it could go on after {piece} tokens");
                return Err(failed(batch.seq, reason));
            }
        };
        let vocab = self.interface.vocab.unwrap_or_default();
        let mut logits = vec![0.0; rows * batch.seq * vocab]; // [batch, seq, vocab]
        let mut states: Vec<DynValue> = Vec::new();
        for start in (0..batch.seq).step_by(piece) {
            let width = piece.min(batch.seq - start);
            let engine = |e: ort::Error| failed(width, e.to_string());
            let part = batch.input_ids.chunks_exact(batch.seq).flat_map(|row| &row[start..start + width]);
            let part = Batch { batch: rows, seq: width, input_ids: part.copied().collect(), ..Batch::default() };
            let mut inputs = self.interface.fed(part).map_err(engine)?;
            if start == 0 {
                let zeros = self.interface.first_states(rows).map_err(engine)?;
                inputs.extend(zeros.into_iter().map(|(name, zeros)| (name.to_owned(), zeros)));
            }
            for (state, value) in self.interface.states.iter().zip(states.drain(..)) {
                inputs.push((state.input.clone(), value));
            }
            let mut outputs = session.run(inputs).map_err(engine)?;
            let found = outputs.remove(self.interface.output.float());
            let found = found.ok_or_else(|| failed(width, "it gave no logits".into()))?;
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

    /// Whether [`Self::run_pieces`] is possible.
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

/// One of several engines of a model.
pub(crate) struct Runner<'m> {
    path: PathBuf,
    engine: &'m mut Engine,
    interface: Arc<Interface>,
    only_logits: Option<RunOptions<HasSelectedOutputs>>,
}

impl Runner<'_> {
    /// [`Model::run`].
    pub fn run(&mut self, batch: &Batch) -> Result<Logits> {
        run(self.engine, self.only_logits.as_ref(), &self.interface, &self.path, batch)
    }
}

/// Requests nothing but the logits.
fn only_logits(output: &Output, path: &Path) -> Result<RunOptions<HasSelectedOutputs>> {
    let options = RunOptions::new().map_err(|e| EvalError::Load { path: path.into(), reason: e.to_string() })?;
    Ok(options.with_outputs(OutputSelector::no_default().with(output.float())))
}

/// See [`Model::run`].
fn run(
    engine: &mut Engine,
    only_logits: Option<&RunOptions<HasSelectedOutputs>>,
    interface: &Interface,
    path: &Path,
    batch: &Batch,
) -> Result<Logits> {
    let failed = |reason: String| EvalError::Run { path: path.into(), batch: batch.batch, seq: batch.seq, reason };
    let session = match engine {
        Engine::Session(session) => session,
        Engine::Function(forward) => {
            let logits = forward(batch).and_then(|values| {
                let vocab = width(values.len(), batch.batch, batch.seq)?;
                Ok(Logits { values: Values::Own(values), seq: batch.seq, vocab })
            });
            return logits.map_err(failed);
        }
    };
    let engine = |e: ort::Error| failed(blame(e.to_string(), &format!("[{}, {}, vocab]", batch.batch, batch.seq)));
    let mut inputs = interface.fed(batch.clone()).map_err(engine)?;
    let states = interface.first_states(batch.batch).map_err(engine)?;
    inputs.extend(states.into_iter().map(|(name, zeros)| (name.to_owned(), zeros)));
    let mut outputs = match only_logits {
        Some(only_logits) => session.run_with_options(inputs, only_logits),
        None => session.run(inputs),
    }
    .map_err(engine)?;
    let logits = outputs.remove(interface.output.float()).ok_or_else(|| failed("it gave no logits".into()))?;
    let values = logits.downcast::<TensorValueType<f32>>().map_err(engine)?;
    match values.shape()[..] {
        [rows, columns, vocab] if (rows, columns) == (batch.batch as i64, batch.seq as i64) => {
            Ok(Logits { values: Values::Runtime(values), seq: batch.seq, vocab: vocab as usize })
        }
        ref other => Err(failed(format!("its logits have the shape {other:?}"))),
    }
}

/// The output of a pass: float32 `[batch, seq, vocab]`.
pub struct Logits {
    values: Values,
    seq: usize,
    vocab: usize,
}

enum Values {
    /// In ONNX Runtime's memory.
    Runtime(Tensor<f32>),
    Own(Vec<f32>),
}

impl Logits {
    /// Width of a row: the size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        match &self.values {
            Values::Runtime(values) => values.extract_tensor().1, // [batch, seq, vocab]
            Values::Own(values) => values,
        }
    }

    /// The values of one sequence.
    pub fn sequence(&self, row: usize) -> &[f32] {
        let size = self.seq * self.vocab;
        &self.values()[row * size..(row + 1) * size] // [seq, vocab]
    }
}
