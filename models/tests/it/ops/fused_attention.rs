//! The CPU's kernels of the Transformer, the loss and the optimiser against the references in float64: outputs and
//! every gradient, at awkward sizes, and to the last bit regardless of the number of threads.

use crate::common::cpu;
use crate::common::kernels::{self, Flat, TOLERANCE, Training, UNIT};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use models::Cpu;
use models::ops::adam::{AdamKernel, AdamOp};
use models::ops::affine::AffineOp;
use models::ops::attention::{self as heads_of, AttentionOp, AttentionOptions, KeyMask, Rotation};
use models::ops::by_distance::ByDistanceOp;
use models::ops::contextual_positions::ContextualPositionsOp;
use models::ops::cross_entropy::CrossEntropyOp;
use models::ops::projection::ProjectionOp;
use models::ops::sum_of_squares::SumOfSquaresOp;
use proptest::prelude::*;

fn random(n: usize, index: u64) -> Vec<f64> {
    kernels::random(n, UNIT, index)
}

fn values(x: TensorData) -> Vec<f64> {
    x.iter::<f64>().collect()
}

/// Compares a kernel, which takes float32, with the reference, which takes any other type.
fn check(what: &str, sizes: &[usize], f: impl Fn(&[Flat]) -> Vec<Flat> + Sync) {
    let arguments: Vec<_> = sizes.iter().map(|&n| (n, UNIT)).collect();
    cpu::check(what, 0.1, &arguments, &f, &f);
}

/// `[batch, seq]`, 0 where hidden: about a third, the first ones too.
fn key_mask(batch: usize, seq: usize, dtype: DType) -> Tensor<Training, 2> {
    let visible: Vec<f64> = random(batch * seq, 50).iter().map(|x| f64::from(u8::from(*x > -0.3))).collect();
    Tensor::from_data(TensorData::new(visible, [batch, seq]), (&Default::default(), dtype))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn attention(
        batch in 1usize..3,
        heads in 1usize..4,
        seq in prop_oneof![Just(1usize), 2usize..20, 60usize..140],
        half in 1usize..10,
        masked in any::<bool>(),
        identity in any::<bool>(),
        rotary in any::<bool>(),
        causal in any::<bool>(),
        biased in prop_oneof![Just(None), (any::<bool>(), any::<bool>()).prop_map(Some)],
    ) {
        let (size, hidden) = (2 * half, 2 * half * heads);
        let what = format!("{batch} × {seq}, {heads} heads of {size}, masked {masked}, identity {identity}, rotary {rotary}, causal {causal}, biased {biased:?}");
        let shape = biased.map(|(examples, each)| [if examples { batch } else { 1 }, if each { heads } else { 1 }, seq, seq]);
        let sizes = [Some(batch * seq * 3 * hidden), shape.map(|shape| shape.iter().product())];
        check(&what, &sizes.into_iter().flatten().collect::<Vec<_>>(), |inputs| {
            let qkv = inputs[0].clone() * 2.0;
            let dtype = qkv.dtype();
            let mask = masked.then(|| KeyMask { keys: key_mask(batch, seq, dtype), identity });
            let rotation = rotary.then(|| {
                let angles = [random(batch * seq * half, 60), vec![]].concat();
                let angles = TensorData::new(angles, [batch, 1, seq, half]);
                let angles = Tensor::<Training, 4>::from_data(angles, (&Default::default(), dtype)) * 3.0;
                let angles = Tensor::cat(vec![angles.clone(), angles], 3);
                Rotation { cos: angles.clone().cos(), sin: angles.sin() }
            });
            let bias = shape.map(|shape| inputs[1].clone().reshape(shape));
            let options = AttentionOptions { heads, scale: 0.7, rotation, bias, mask, causal };
            let y = Training::packed_attention(qkv.reshape([batch, seq, 3 * hidden]), options);
            vec![y.reshape([batch * seq * hidden])]
        });
    }

    #[test]
    fn contextual_positions(
        batch in 1usize..3,
        heads in 1usize..4,
        seq in prop_oneof![Just(1usize), 2usize..20, 60usize..140],
        positions in prop_oneof![Just(1usize), 2usize..10, Just(200)],
        masked in any::<bool>(),
        identity in any::<bool>(),
    ) {
        let sizes = [batch * heads * seq * seq, batch * heads * seq * positions];
        let what = format!("{batch} × {heads} × {seq}, {positions} positions, masked {masked}, identity {identity}");
        check(&what, &sizes, |inputs| {
            let logits = (inputs[0].clone() * 3.0).reshape([batch, heads, seq, seq]);
            let by_position = inputs[1].clone().reshape([batch, heads, seq, positions]);
            let mask = masked.then(|| KeyMask { keys: key_mask(batch, seq, logits.dtype()), identity });
            vec![Training::contextual_positions(logits, by_position, mask.as_ref()).reshape([-1])]
        });
    }

    #[test]
    fn by_distance(heads in 1usize..5, seq in prop_oneof![Just(1usize), 2usize..20, 60usize..140]) {
        check(&format!("{heads} × {seq}"), &[heads * seq], |inputs| {
            vec![Training::by_distance(inputs[0].clone().reshape([heads, seq])).reshape([-1])]
        });
    }

    #[test]
    fn cross_entropy(batch in 1usize..4, seq in 1usize..90, vocab in 2usize..40) {
        let labels: Vec<i64> = (0..batch * seq).map(|i| (i * 7 % (vocab + 2)) as i64 - 2).map(|l| l.max(-1)).collect();
        let weights: Vec<f64> = labels.iter().zip(random(batch * seq, 70)).map(|(&l, w)| if l < 0 { 0.0 } else { w }).collect();
        check(&format!("{batch} × {seq}, {vocab} tokens"), &[batch * seq * vocab], |inputs| {
            let logits = (inputs[0].clone() * 9.0).reshape([batch, seq, vocab]);
            let device = (&Default::default(), logits.dtype());
            let weights = Tensor::from_data(TensorData::new(weights.clone(), [batch, seq]), device);
            let labels = Tensor::from_data(TensorData::new(labels.clone(), [batch, seq]), &Default::default());
            vec![Training::cross_entropy(logits, labels, weights) * 2.0]
        });
    }
}

#[test]
fn affine() {
    for [batch, seq, input, output] in [[1, 1, 1, 1], [2, 5, 3, 7], [1, 33, 17, 9], [3, 100, 96, 130]] {
        for relu in [false, true] {
            let sizes = [batch * seq * input, input * output, output];
            check(&format!("{batch} × {seq}, {input} → {output}, relu {relu}"), &sizes, |inputs| {
                let [x, weight, bias] = [0, 1, 2].map(|i| inputs[i].clone());
                let x = x.reshape([batch, seq, input]);
                let y = Training::affine(x, weight.reshape([input, output]), bias, relu);
                vec![y.reshape([batch * seq * output])]
            });
        }
    }
}

/// With more rows than the gradient of the weight sums at a time, too.
#[test]
fn projection() {
    for [batch, seq, input, output] in [[1, 1, 1, 1], [2, 5, 3, 7], [1, 33, 17, 9], [3, 100, 96, 130], [3, 701, 9, 5]] {
        check(&format!("{batch} × {seq}, {input} → {output}"), &[batch * seq * input, input * output], |inputs| {
            let [x, weight] = [0, 1].map(|i| inputs[i].clone());
            let y = Training::projection(x.reshape([batch, seq, input]), weight.reshape([output, input]));
            vec![y.reshape([batch * seq * output])]
        });
    }
}

#[test]
fn optimiser() {
    let rule = AdamKernel { betas: [0.9, 0.999], epsilon: 1e-8, rate: 0.01, root: 0.1, keep: 0.99 };
    for n in [1, 7, 1000, 40_000] {
        let tensor = |index, dtype| -> Tensor<Cpu, 1> {
            Tensor::from_data(TensorData::from(random(n, index).as_slice()), (&Default::default(), dtype))
        };
        let step = |dtype| {
            let [parameter, gradient, first, second] = [0, 1, 2, 3].map(|i| tensor(i, dtype));
            let factor = Tensor::from_data(TensorData::from([0.5]), (&Default::default(), dtype));
            let sum = Cpu::sum_of_squares(gradient.clone()) / n as f64;
            let (next, [m, v]) = Cpu::adam_step(rule, parameter, gradient, [first, second.abs()], factor);
            [next, m, v, sum].map(|x| values(x.into_data()))
        };
        for (found, expected) in step(DType::F32).iter().flatten().zip(step(DType::F64).iter().flatten()) {
            assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(0.1), "{n}: {found}, not {expected}");
        }
    }
}

/// Packed attention is that of the heads one by one.
#[test]
fn heads_side_by_side() {
    let [batch, seq, heads, size] = [2, 5, 3, 4];
    let qkv =
        Tensor::<Cpu, 1>::from_data(TensorData::from(random(batch * seq * 36, 0).as_slice()), &Default::default());
    let qkv = qkv.reshape([batch, seq, 3 * heads * size]);
    let y = Cpu::packed_attention(qkv.clone(), AttentionOptions::new(heads, 0.5));
    for head in 0..heads {
        let part = |k: usize| qkv.clone().narrow(2, k * heads * size + head * size, size).unsqueeze_dim::<4>(1);
        let probabilities = heads_of::probabilities(part(0), part(1), &AttentionOptions::new(1, 0.5));
        let alone = probabilities.matmul(part(2)).squeeze_dim::<3>(1);
        y.clone()
            .narrow(2, head * size, size)
            .into_data()
            .assert_approx_eq::<f32>(&alone.into_data(), burn::tensor::Tolerance::absolute(1e-6));
    }
}

/// A bias of zeros changes nothing, and one that hides a key is a mask.
#[test]
fn a_bias_is_added_to_the_scores() {
    let [batch, heads, seq, size] = [2, 3, 7, 4];
    let device = Default::default();
    let qkv = random(batch * seq * 3 * heads * size, 0);
    let qkv = Tensor::<Cpu, 1>::from_data(TensorData::from(qkv.as_slice()).convert::<f32>(), &device);
    let qkv = qkv.reshape([batch, seq, 3 * heads * size]);
    let keys: Vec<f32> = (0..batch * seq).map(|i| if i % seq == 2 { 0.0 } else { 1.0 }).collect();
    let keys = Tensor::<Cpu, 2>::from_data(TensorData::new(keys, [batch, seq]), &device);
    let hidden = (keys.clone() - 1.0).reshape([batch, 1, 1, seq]) * 1e9;
    let zeros = Tensor::zeros([1, heads, seq, seq], &device);
    for (bias, mask) in
        [(zeros, None), (hidden.expand([batch, heads, seq, seq]), Some(KeyMask { keys, identity: false }))]
    {
        let options = AttentionOptions::<Cpu>::new(heads, 0.5);
        let by_bias = Cpu::packed_attention(qkv.clone(), AttentionOptions { bias: Some(bias), ..options.clone() });
        let by_mask = Cpu::packed_attention(qkv.clone(), AttentionOptions { mask, ..options });
        by_bias.into_data().assert_approx_eq::<f32>(&by_mask.into_data(), burn::tensor::Tolerance::absolute(1e-6));
    }
}

/// With everything that scores depend on, against the definition by hand.
#[test]
fn a_bias_comes_with_rotations_and_masks() {
    let [batch, heads, seq, size] = [2, 2, 5, 4];
    let hidden = heads * size;
    let sizes = [batch * seq * 3 * hidden, heads * seq * seq];
    let mask = |dtype| Some(KeyMask { keys: key_mask(batch, seq, dtype), identity: true });
    let rotation = |dtype| {
        let angles = TensorData::new(random(batch * seq * size / 2, 60), [batch, 1, seq, size / 2]);
        let angles = Tensor::<Training, 4>::from_data(angles, (&Default::default(), dtype));
        let angles = Tensor::cat(vec![angles.clone(), angles], 3); // the second half repeats the first
        Rotation { cos: angles.clone().cos(), sin: angles.sin() }
    };
    let arguments: Vec<_> = sizes.iter().map(|&n| (n, UNIT)).collect();
    let by_hand = |a: &[Flat]| {
        let dtype = a[0].dtype();
        let rotation = rotation(dtype);
        let part = |k: usize| {
            let part = a[0].clone().reshape([batch, seq, 3, heads, size]).narrow(2, k, 1);
            part.reshape([batch, seq, heads, size]).swap_dims(1, 2)
        };
        let [q, k] = [0, 1].map(|k| heads_of::rotate(part(k), &rotation));
        let bias = a[1].clone().reshape([1, heads, seq, seq]);
        let keys = key_mask(batch, seq, dtype).reshape([batch, 1, 1, seq]);
        let eye = Tensor::<Training, 2>::eye(seq, &Default::default()).cast(dtype).unsqueeze();
        let visible = keys.clone() + (keys.neg() + 1.0) * eye; // [batch, 1, query, key]
        let past = Tensor::<Training, 2>::ones([seq, seq], (&Default::default(), dtype)).tril(0).unsqueeze();
        let weights = (q.matmul(k.transpose()) * 0.7 + bias).exp() * visible * past;
        let weights = weights.clone() / weights.sum_dim(3);
        vec![weights.matmul(part(2)).swap_dims(1, 2).reshape([batch * seq * hidden])]
    };
    let packed = |a: &[Flat]| {
        let (qkv, dtype) = (a[0].clone().reshape([batch, seq, 3 * hidden]), a[0].dtype());
        let bias = Some(a[1].clone().reshape([1, heads, seq, seq]));
        let rotation = Some(rotation(dtype));
        let options = AttentionOptions { rotation, bias, mask: mask(dtype), ..AttentionOptions::new(heads, 0.7) };
        vec![Training::packed_attention(qkv, options).reshape([batch * seq * hidden])]
    };
    cpu::check("attention with a bias", 0.1, &arguments, packed, by_hand);
}
