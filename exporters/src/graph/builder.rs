//! A builder for ONNX graphs that follows the modules of a model.
//!
//! [`GraphBuilder::scope`] enters a module. Inside it, weights are looked up by their name in that module, and nodes
//! are called after it: in `h.1`, `attn`, `c_attn`, the weight `weight` is the checkpoint's `h.1.attn.c_attn.weight`
//! and the node that multiplies by it is `/h.1/attn/c_attn/MatMul`.

use super::messages::{Attribute, BATCH, Dim, attribute, entry, fingerprint, move_out, prune, rename, value_info};
use crate::onnx::tensor_proto::DataType;
use crate::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::{ExportError, ExportOptions, Precision, Target};
use half::{bf16, f16};
use models::{Weight, Weights};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The version of the file format, of early 2024.
const IR_VERSION: i64 = 10;

/// A tensor of the graph.
#[derive(Debug, Clone)]
pub(crate) struct Value(String);

impl Value {
    /// An optional input of a node that is left out.
    pub(crate) const fn none() -> Self {
        Self(String::new())
    }
}

/// A number that a constant tensor can hold.
pub(crate) trait Element: Copy {
    const TYPE: DataType;
    fn extend(self, raw_data: &mut Vec<u8>);
}

impl Element for f32 {
    const TYPE: DataType = DataType::Float;
    fn extend(self, raw_data: &mut Vec<u8>) {
        raw_data.extend(self.to_le_bytes());
    }
}

impl Element for i64 {
    const TYPE: DataType = DataType::Int64;
    fn extend(self, raw_data: &mut Vec<u8>) {
        raw_data.extend(self.to_le_bytes());
    }
}

/// See the [module documentation](self).
pub(crate) struct GraphBuilder<'a> {
    weights: &'a Weights,
    options: ExportOptions,
    /// Weights that the graph has used.
    used: BTreeSet<String>,
    /// The modules entered and not yet left.
    modules: Vec<String>,
    /// How often each node name has been used.
    names: HashMap<String, usize>,
    /// Whether recurrent states are inputs and outputs of the graph; otherwise they begin at zero and end unseen.
    stateful: bool,
    /// Whether the model has recurrent states.
    has_states: bool,
    /// Numbers of all recurrent states of one example.
    state_size: usize,
    /// The number of examples, `[1]`, once it is needed.
    batch: Option<Value>,
    /// Listed after all other outputs.
    state_outputs: Vec<ValueInfoProto>,
    graph: GraphProto,
}

/// A file that a builder made.
pub(crate) struct Finished {
    pub model: Vec<u8>,
    /// The large constants, where the message could not hold them.
    pub weights: Option<Vec<u8>>,
    pub graph_fingerprint: String,
    /// Whether the model has recurrent states.
    pub has_states: bool,
    /// Numbers of all recurrent states of one example.
    pub state_size: usize,
}

impl<'a> GraphBuilder<'a> {
    /// An empty graph of a model with these weights; `stateful` makes its recurrent states inputs and outputs.
    pub(crate) fn new(name: &str, weights: &'a Weights, options: &ExportOptions, stateful: bool) -> Self {
        let graph = GraphProto { name: Some(name.into()), ..Default::default() };
        Self {
            weights,
            options: options.clone(),
            used: BTreeSet::new(),
            modules: Vec::new(),
            names: HashMap::new(),
            stateful,
            has_states: false,
            state_size: 0,
            batch: None,
            state_outputs: Vec::new(),
            graph,
        }
    }

    /// The program that the file is written for.
    pub(crate) fn target(&self) -> Target {
        self.options.target
    }

    /// All nodes that `build` adds belong to `module`.
    pub(crate) fn scope<T>(&mut self, module: impl Into<String>, build: impl FnOnce(&mut Self) -> T) -> T {
        self.modules.push(module.into());
        let built = build(self);
        self.modules.pop();
        built
    }

    /// All nodes that `build` adds belong to no module.
    pub(crate) fn at_root<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
        let modules = std::mem::take(&mut self.modules);
        let built = build(self);
        self.modules = modules;
        built
    }

    /// An input of the graph.
    pub(crate) fn input(&mut self, name: &str, doc: &str, element: DataType, dims: &[Dim]) -> Value {
        self.graph.input.push(value_info(name, doc, element, dims));
        Value(name.into())
    }

    /// Whether recurrent states are inputs and outputs of this graph. To be asked by every layer that has states.
    pub(crate) fn takes_states(&mut self) -> bool {
        self.has_states = true;
        self.stateful
    }

    /// A recurrent state before the first token, `[batch, dims…]`: the input `state_<name>_in`, or zeros in a graph without such
    /// inputs. [`Self::state_output`] is its other half.
    pub(crate) fn state_input(&mut self, name: &str, doc: &str, ids: &Value, dims: &[usize]) -> Value {
        self.state_size += dims.iter().product::<usize>();
        if self.takes_states() {
            let axes: Vec<Dim> = [BATCH].into_iter().chain(dims.iter().map(|&n| Dim::Fixed(n))).collect();
            return self.input(&format!("state_{name}_in"), doc, DataType::Float, &axes);
        }
        let batch = match &self.batch {
            Some(batch) => batch.clone(),
            None => {
                let ends = [("start", Attribute::Int(0)), ("end", Attribute::Int(1))];
                self.at_root(|g| g.scope("batch", |g| g.node("Shape", &[ids], &ends)))
            }
        };
        self.batch = Some(batch.clone());
        self.scope(format!("state_{name}"), |g| {
            let dims = g.list("dims", &dims.iter().map(|&n| n as i64).collect::<Vec<_>>());
            let shape = g.node("Concat", &[&batch, &dims], &[("axis", Attribute::Int(0))]);
            g.node("ConstantOfShape", &[&shape], &[]) // float32 zeros
        })
    }

    /// The state after the last token, as the output `state_<name>_out` `[batch, dims…]` of a graph that has such outputs.
    pub(crate) fn state_output(&mut self, name: &str, doc: &str, value: Value, dims: &[usize]) {
        if !self.takes_states() {
            return;
        }
        let axes: Vec<Dim> = [BATCH].into_iter().chain(dims.iter().map(|&n| Dim::Fixed(n))).collect();
        let output = format!("state_{name}_out");
        rename(&mut self.graph.node, &value.0, &output);
        self.state_outputs.push(value_info(&output, doc, DataType::Float, &axes));
    }

    /// A loop over the first axis of `inputs`: `body` gets the states and one slice of each input, and returns the next
    /// states and one slice of each output. Returns the last states and the stacked outputs. `body` may use any value
    /// and any weight from outside.
    pub(crate) fn scan<const S: usize, const N: usize, const M: usize>(
        &mut self,
        states: [&Value; S],
        inputs: [&Value; N],
        body: impl FnOnce(&mut Self, [Value; S], [Value; N]) -> Result<([Value; S], [Value; M]), ExportError>,
    ) -> Result<([Value; S], [Value; M]), ExportError> {
        let name = self.node_name("Scan_body");
        let outside = std::mem::take(&mut self.graph.node);
        let state: [Value; S] = std::array::from_fn(|i| Value(format!("{name}_state_{i}")));
        let slice: [Value; N] = std::array::from_fn(|i| Value(format!("{name}_slice_{i}")));
        let built = body(self, state.clone(), slice.clone());
        let nodes = std::mem::replace(&mut self.graph.node, outside);
        let (next, stacked) = built?;
        // Types inside a body follow from those outside.
        let named = |value: &Value| ValueInfoProto { name: Some(value.0.clone()), ..Default::default() };
        let graph = GraphProto {
            name: Some(name),
            node: nodes,
            input: state.iter().chain(&slice).map(named).collect(),
            output: next.iter().chain(&stacked).map(named).collect(),
            ..Default::default()
        };
        let inputs: Vec<&Value> = states.into_iter().chain(inputs).collect();
        let attributes = [("num_scan_inputs", Attribute::Int(N as i64)), ("body", Attribute::Graph(&graph))];
        let outputs = self.node_with(S + M, "Scan", &inputs, &attributes);
        Ok((std::array::from_fn(|i| outputs[i].clone()), std::array::from_fn(|i| outputs[S + i].clone())))
    }

    /// `state` after `body` has been applied to it so many `times` (an integer without axes). `body` may use any value and any
    /// weight from outside.
    pub(crate) fn repeat(
        &mut self,
        times: &Value,
        state: &Value,
        body: impl FnOnce(&mut Self, Value) -> Result<Value, ExportError>,
    ) -> Result<Value, ExportError> {
        let name = self.node_name("Loop_body");
        let outside = std::mem::take(&mut self.graph.node);
        let [iteration, condition, before] =
            ["iteration", "goes_on", "state"].map(|what| Value(format!("{name}_{what}")));
        let built = body(self, before.clone());
        let goes_on = self.node("Identity", &[&condition], &[]);
        let nodes = std::mem::replace(&mut self.graph.node, outside);
        let after = built?;
        let named = |value: &Value| ValueInfoProto { name: Some(value.0.clone()), ..Default::default() };
        let graph = GraphProto {
            name: Some(name),
            node: nodes,
            // Without a condition outside there is nothing that its type would follow from.
            input: vec![
                value_info(&iteration.0, "", DataType::Int64, &[]),
                value_info(&condition.0, "", DataType::Bool, &[]),
                named(&before),
            ],
            output: vec![value_info(&goes_on.0, "", DataType::Bool, &[]), named(&after)],
            ..Default::default()
        };
        Ok(self.node("Loop", &[times, &Value::none(), state], &[("body", Attribute::Graph(&graph))]))
    }

    /// Makes `value` an output of the graph, called `name`.
    pub(crate) fn output(&mut self, name: &str, doc: &str, value: Value, element: DataType, dims: &[Dim]) {
        rename(&mut self.graph.node, &value.0, name);
        self.graph.output.push(value_info(name, doc, element, dims));
    }

    /// The current module's weight `name`, which must have this shape.
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<&'a Weight, ExportError> {
        let name = self.initializer_name(name);
        let expected = shape.to_vec();
        let Some(weight) = self.weights.get(&name) else { return Err(ExportError::MissingWeight { name, expected }) };
        if weight.shape != expected {
            return Err(ExportError::WrongShape { name, expected, found: weight.shape.clone() });
        }
        self.used.insert(name);
        Ok(weight)
    }

    /// The current module's integer buffer `name`.
    pub(crate) fn integer(&mut self, name: &str) -> Result<usize, ExportError> {
        let name = self.initializer_name(name);
        self.weights.integer(&name).ok_or(ExportError::MissingWeight { name, expected: vec![] })
    }

    /// The current module's weight `name` as a tensor of the graph, exactly as it is in the checkpoint.
    pub(crate) fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Value, ExportError> {
        let weight = self.weight(name, shape)?;
        Ok(self.constant(name, shape, &weight.values))
    }

    /// A constant tensor, row-major.
    pub(crate) fn constant<T: Element>(&mut self, name: &str, shape: &[usize], values: &[T]) -> Value {
        let mut raw_data = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| value.extend(&mut raw_data));
        self.initializer(name, shape, T::TYPE, raw_data)
    }

    /// A repeated constant is stored once; another one of the same name gets a number, as nodes do.
    fn initializer(&mut self, name: &str, shape: &[usize], element: DataType, raw_data: Vec<u8>) -> Value {
        let base = self.initializer_name(name);
        let mut tensor = TensorProto {
            dims: shape.iter().map(|&n| n as i64).collect(),
            data_type: Some(element.into()),
            name: Some(base.clone()),
            raw_data: Some(raw_data),
            ..Default::default()
        };
        let mut count = 0;
        while let Some(found) = self.graph.initializer.iter().find(|found| found.name == tensor.name) {
            if *found == tensor {
                return Value(tensor.name.unwrap_or_default());
            }
            count += 1;
            tensor.name = Some(format!("{base}_{count}"));
        }
        let name = tensor.name.clone().unwrap_or_default();
        self.graph.initializer.push(tensor);
        Value(name)
    }

    /// A matrix that activations are multiplied by, in the precision of the export. [`Self::narrow`] brings them to it.
    pub(crate) fn factor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        let element = self.options.precision.element();
        let factor = match self.options.precision {
            Precision::Fp32 => return self.constant(name, shape, values),
            Precision::Fp16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Precision::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        };
        let factor = self.initializer(name, shape, element, factor);
        if self.options.float32_products { self.cast(&factor, DataType::Float) } else { factor }
    }

    /// The nodes that `build` adds compute their products in float32 if the precision is bfloat16, for operators that
    /// do not take it.
    pub(crate) fn without_bf16<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.options.float32_products;
        self.options.float32_products |= self.options.precision == Precision::Bf16;
        let built = build(self);
        self.options.float32_products = before;
        built
    }

    /// Float activations in the precision of products.
    pub(crate) fn narrow(&mut self, value: &Value) -> Value {
        match self.options.precision {
            Precision::Fp32 => value.clone(),
            _ if self.options.float32_products => value.clone(),
            narrow => self.cast(value, narrow.element()),
        }
    }

    /// The float32 value of a product's result.
    pub(crate) fn widen(&mut self, value: &Value) -> Value {
        match self.options.precision {
            Precision::Fp32 => value.clone(),
            _ if self.options.float32_products => value.clone(),
            _ => self.cast(value, DataType::Float),
        }
    }

    /// The same numbers as another type.
    pub(crate) fn cast(&mut self, value: &Value, to: DataType) -> Value {
        self.node("Cast", &[value], &[("to", Attribute::Int(to as i64))])
    }

    /// A constant without axes.
    pub(crate) fn scalar<T: Element>(&mut self, name: &str, value: T) -> Value {
        self.constant(name, &[], &[value])
    }

    /// A list of axes, or a shape.
    pub(crate) fn list(&mut self, name: &str, values: &[i64]) -> Value {
        self.constant(name, &[values.len()], values)
    }

    /// A node with one output.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&Value], attributes: &[(&str, Attribute<'_>)]) -> Value {
        let [value] = self.nodes(op, inputs, attributes);
        value
    }

    /// A node with `N` outputs.
    pub(crate) fn nodes<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute<'_>)],
    ) -> [Value; N] {
        let outputs = self.node_with(N, op, inputs, attributes);
        std::array::from_fn(|i| outputs[i].clone())
    }

    /// A node with as many outputs as `outputs` says. `op` is an operator of ONNX, or of another domain if the domain
    /// stands before it, as in `com.microsoft.LinearAttention`.
    pub(crate) fn node_with(
        &mut self,
        outputs: usize,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute<'_>)],
    ) -> Vec<Value> {
        let (domain, op) = op.rsplit_once('.').unwrap_or(("", op));
        let name = self.node_name(op);
        let outputs: Vec<Value> = (0..outputs).map(|i| Value(format!("{name}_output_{i}"))).collect();
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: outputs.iter().map(|value| value.0.clone()).collect(),
            name: Some(name),
            op_type: Some(op.into()),
            domain: Some(domain).filter(|domain| !domain.is_empty()).map(str::to_owned),
            attribute: attributes.iter().map(|&(name, value)| attribute(name, value)).collect(),
        });
        outputs
    }

    /// The ONNX file. Every weight of the checkpoint must have been used.
    pub(crate) fn finish(mut self, metadata: &[(&str, String)]) -> Result<Finished, ExportError> {
        let unused = self.weights.iter().map(|(name, _)| name).filter(|&name| !self.used.contains(name));
        let names: Vec<String> = unused.map(|name| format!("`{name}`")).collect();
        if !names.is_empty() {
            return Err(ExportError::UnusedWeights { names });
        }
        self.graph.output.append(&mut self.state_outputs);
        prune(&mut self.graph);
        let mut opsets = BTreeMap::from([("", self.options.opset)]);
        opsets.extend(self.graph.node.iter().filter_map(|node| node.domain.as_deref()).map(|domain| (domain, 1)));
        let opset = |(&domain, &version): (&&str, &i64)| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        let mut model = ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: opsets.iter().map(opset).collect(),
            producer_name: Some("inductive-counting pipeline".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(self.graph),
            metadata_props: metadata.iter().map(|(key, value)| entry(key, value)).collect(),
        };
        let too_large = model.encoded_len() > self.options.largest_message;
        let weights = model.graph.as_mut().filter(|_| too_large).map(|graph| move_out(graph, self.stateful));
        model.metadata_props.push(entry("state_size", &self.state_size.to_string()));
        let graph = fingerprint(&model.graph.as_ref().map(Message::encode_to_vec).unwrap_or_default());
        model.metadata_props.push(entry("graph_fingerprint", &graph));
        Ok(Finished {
            model: model.encode_to_vec(),
            weights,
            graph_fingerprint: graph,
            has_states: self.has_states,
            state_size: self.state_size,
        })
    }

    /// `h.0.attn.c_attn.weight`, as in the checkpoint.
    fn initializer_name(&self, name: &str) -> String {
        let parts: Vec<&str> = self.modules.iter().map(String::as_str).chain([name]).collect();
        parts.join(".")
    }

    /// `/h.0/attn/c_attn/MatMul`, then `/h.0/attn/c_attn/MatMul_1` and so on.
    fn node_name(&mut self, op: &str) -> String {
        let modules: String = self.modules.iter().map(|module| format!("/{module}")).collect();
        let name = format!("{modules}/{op}");
        let count = self.names.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}_{}", *count - 1) }
    }
}
