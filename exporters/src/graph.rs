//! A builder for ONNX graphs that follows the modules of a model.
//!
//! [`GraphBuilder::scope`] enters a module. Inside it, weights are looked up by their name in that module, and nodes are
//! called after it: in `h.1`, `attn`, `c_attn`, the weight `weight` is the checkpoint's `h.1.attn.c_attn.weight` and the
//! node that multiplies by it is `/h.1/attn/c_attn/MatMul`.

use crate::onnx::attribute_proto::AttributeType;
use crate::onnx::tensor_proto::{DataLocation, DataType};
use crate::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::{ExportError, ExportOptions, OnnxFile, Precision, Target, WEIGHTS_FILE};
use half::{bf16, f16};
use models::{Weight, Weights};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The version of the file format, of early 2024.
const IR_VERSION: i64 = 10;
/// Smaller constants stay in the message when the weights go to a second file: shape inference reads them.
const SMALLEST_EXTERNAL: usize = 1024;

/// The axis of examples; its size is up to each call.
pub(crate) const BATCH: Dim = Dim::Symbol("batch");
/// The axis of time; its size is up to each call.
pub(crate) const SEQ: Dim = Dim::Symbol("seq");

/// One axis of a graph input or output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dim {
    Symbol(&'static str),
    Fixed(usize),
}

/// A tensor of the graph.
#[derive(Debug, Clone)]
pub(crate) struct Value(String);

impl Value {
    /// An optional input of a node that is left out.
    pub(crate) const fn none() -> Self {
        Self(String::new())
    }
}

/// A constant argument of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attribute<'a> {
    Float(f64),
    Int(i64),
    Ints(&'a [i64]),
    Text(&'a str),
    Graph(&'a GraphProto),
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
    /// Weights that the graph has taken in.
    used: BTreeSet<String>,
    /// The modules entered and not yet left.
    modules: Vec<String>,
    /// How often each name of a node has been asked for.
    names: HashMap<String, usize>,
    /// They stand behind every other output.
    state_outputs: Vec<ValueInfoProto>,
    graph: GraphProto,
}

impl<'a> GraphBuilder<'a> {
    /// An empty graph of a model with these weights.
    pub(crate) fn new(name: &str, weights: &'a Weights, options: &ExportOptions) -> Self {
        let graph = GraphProto { name: Some(name.into()), ..Default::default() };
        Self {
            weights,
            options: options.clone(),
            used: BTreeSet::new(),
            modules: Vec::new(),
            names: HashMap::new(),
            state_outputs: Vec::new(),
            graph,
        }
    }

    /// What the file is written for.
    pub(crate) fn target(&self) -> Target {
        self.options.target
    }

    /// Whatever `build` adds belongs to `module`.
    pub(crate) fn scope<T>(&mut self, module: impl Into<String>, build: impl FnOnce(&mut Self) -> T) -> T {
        self.modules.push(module.into());
        let built = build(self);
        self.modules.pop();
        built
    }

    /// Whatever `build` adds belongs to no module.
    fn at_root<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
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

    /// A recurrent state that a caller may hand in: the optional input `state_<name>_in` `[1 or batch, dims…]`, zeros where
    /// it is left out. Returns it as `[batch, dims…]`. [`Self::state_output`] is its other half.
    pub(crate) fn state_input(&mut self, name: &str, doc: &str, ids: &Value, dims: &[usize]) -> Value {
        // An input that has an initializer of the same name may be left out. One row of zeros serves every batch.
        let input = format!("state_{name}_in");
        let shape: Vec<usize> = [1].iter().chain(dims).copied().collect();
        let zeros = self.at_root(|g| g.constant(&input, &shape, &vec![0.0f32; shape.iter().product()]));
        let axes: Vec<Dim> =
            [Dim::Symbol("state_batch")].into_iter().chain(dims.iter().map(|&n| Dim::Fixed(n))).collect();
        self.graph.input.push(value_info(&input, doc, DataType::Float, &axes));
        self.scope(format!("state_{name}"), |g| {
            let batch = g.node("Shape", &[ids], &[("start", Attribute::Int(0)), ("end", Attribute::Int(1))]);
            let dims = g.list("dims", &dims.iter().map(|&n| n as i64).collect::<Vec<_>>());
            let shape = g.node("Concat", &[&batch, &dims], &[("axis", Attribute::Int(0))]);
            g.node("Expand", &[&zeros, &shape], &[])
        })
    }

    /// The state after the last token, as the output `state_<name>_out` `[batch, dims…]`.
    pub(crate) fn state_output(&mut self, name: &str, doc: &str, value: Value, dims: &[usize]) {
        let axes: Vec<Dim> = [BATCH].into_iter().chain(dims.iter().map(|&n| Dim::Fixed(n))).collect();
        let output = format!("state_{name}_out");
        rename(&mut self.graph.node, &value.0, &output);
        self.state_outputs.push(value_info(&output, doc, DataType::Float, &axes));
    }

    /// A loop over the first axis of `inputs`: `body` gets the states and one slice of each input, and returns the next
    /// states and one slice of each output. Returns the last states and the stacked outputs. `body` may use any value and
    /// any weight from outside.
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

    /// The same constant asked for twice is one; another one of the same name gets a number, as nodes do.
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

    /// Whatever `build` adds computes its products in float32 if the precision is bfloat16, for operators that do not
    /// take it.
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

    /// The ONNX file. Every weight of the checkpoint must have been asked for.
    pub(crate) fn finish(mut self, metadata: &[(&str, String)]) -> Result<OnnxFile, ExportError> {
        let unused = self.weights.iter().map(|(name, _)| name).filter(|&name| !self.used.contains(name));
        let names: Vec<String> = unused.map(|name| format!("`{name}`")).collect();
        if !names.is_empty() {
            return Err(ExportError::UnusedWeights { names });
        }
        self.graph.output.append(&mut self.state_outputs);
        let entry = |(key, value): &(&str, String)| entry(key, value);
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
            metadata_props: metadata.iter().map(entry).collect(),
        };
        let too_large = model.encoded_len() > self.options.largest_message;
        let weights = model.graph.as_mut().filter(|_| too_large).map(move_out);
        Ok(OnnxFile { model: model.encode_to_vec(), weights })
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

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

/// Takes the large constants out of the message; it then says where in [`WEIGHTS_FILE`] they are.
fn move_out(graph: &mut GraphProto) -> Vec<u8> {
    let mut file = Vec::new();
    for tensor in &mut graph.initializer {
        if tensor.raw_data().len() < SMALLEST_EXTERNAL {
            continue;
        }
        let Some(raw_data) = tensor.raw_data.take() else { continue };
        // Readers that map the file into memory like pages of 4 KiB.
        file.resize(usize::next_multiple_of(file.len(), 4096), 0);
        tensor.external_data = vec![
            entry("location", WEIGHTS_FILE),
            entry("offset", &file.len().to_string()),
            entry("length", &raw_data.len().to_string()),
        ];
        tensor.set_data_location(DataLocation::External);
        file.extend(raw_data);
    }
    file
}

/// Renames an edge, also where the body of a loop uses it.
fn rename(nodes: &mut [NodeProto], from: &str, to: &str) {
    for node in nodes {
        let edges = node.input.iter_mut().chain(&mut node.output);
        edges.filter(|edge| *edge == from).for_each(|edge| *edge = to.into());
        let bodies = node.attribute.iter_mut().filter_map(|attribute| attribute.g.as_mut());
        bodies.for_each(|body| rename(&mut body.node, from, to));
    }
}

fn value_info(name: &str, doc: &str, element: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| Dimension {
        value: Some(match *dim {
            Dim::Symbol(name) => dimension::Value::DimParam(name.into()),
            Dim::Fixed(n) => dimension::Value::DimValue(n as i64),
        }),
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(element.into()), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type), doc_string: Some(doc.into()) }
}

fn attribute(name: &str, value: Attribute<'_>) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.into()), ..Default::default() };
    match value {
        Attribute::Float(f) => {
            proto.set_type(AttributeType::Float);
            proto.f = Some(f as f32);
        }
        Attribute::Int(i) => {
            proto.set_type(AttributeType::Int);
            proto.i = Some(i);
        }
        Attribute::Ints(ints) => {
            proto.set_type(AttributeType::Ints);
            proto.ints = ints.to_vec();
        }
        Attribute::Text(text) => {
            proto.set_type(AttributeType::String);
            proto.s = Some(text.into());
        }
        Attribute::Graph(graph) => {
            proto.set_type(AttributeType::Graph);
            proto.g = Some(graph.clone());
        }
    }
    proto
}
