//! The CPU's kernels of the Transformer, the loss and the optimiser against the plain definitions in float64: outputs and
//! every gradient, at awkward sizes, and to the last bit whatever the number of threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use data::stream_rng;
use models::Cpu;
use models::ops::cpu::adam::AdamKernel;
use models::ops::{KeyMask, Rotation, SequenceOps, plain};
use proptest::prelude::*;
use rand::RngExt;

type Training = Autodiff<Cpu>;
type Flat = Tensor<Training, 1>;

/// Relative to the largest entry of an output or gradient.
const TOLERANCE: f64 = 1e-5;

/// Numbers uniform on ±1, different for each `index`, that float32 can hold.
fn random(n: usize, index: u64) -> Vec<f64> {
    let mut rng = stream_rng(1, "test values", index);
    (0..n).map(|_| f64::from(rng.random_range(-1.0f32..1.0))).collect()
}

fn flat(x: TensorData) -> Vec<f64> {
    x.iter::<f64>().collect()
}

/// Outputs of arguments of these sizes, and the gradients of Σ c·outputs with fixed c.
fn results(sizes: &[usize], dtype: DType, f: &dyn Fn(&[Flat]) -> Vec<Flat>) -> Vec<Vec<f64>> {
    let tensor = |n, index| -> Flat {
        Tensor::from_data(TensorData::from(random(n, index).as_slice()), (&Default::default(), dtype))
    };
    let inputs: Vec<Flat> = sizes.iter().zip(0..).map(|(&n, i)| tensor(n, i).require_grad()).collect();
    let outputs = f(&inputs);
    let weighted = outputs.iter().zip(90..).map(|(y, i)| (y.clone() * tensor(y.dims()[0], i)).sum());
    let gradients = weighted.reduce(|a, b| a + b).unwrap().backward();
    let gradient = |x: &Flat| x.grad(&gradients).map_or(vec![], |g| flat(g.into_data()));
    let gradients: Vec<Vec<f64>> = inputs.iter().map(gradient).collect();
    outputs.into_iter().map(|y| flat(y.into_data())).chain(gradients).collect()
}

/// Compares a kernel, which takes float32, with the definition, which everything else gets.
fn check(what: &str, sizes: &[usize], f: impl Fn(&[Flat]) -> Vec<Flat> + Sync) {
    let on_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| results(sizes, DType::F32, &f))
    };
    let (found, expected) = (on_threads(1), results(sizes, DType::F64, &f));
    assert_eq!(found, on_threads(2), "{what}: threads change the result");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{what}: part {i}");
        let largest = expected.iter().fold(0.1, |m: f64, x| m.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= TOLERANCE * largest, "{what}: part {i}: {found}, not {expected}");
        }
    }
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
    ) {
        let (size, hidden) = (2 * half, 2 * half * heads);
        let what = format!("{batch} × {seq}, {heads} heads of {size}, masked {masked}, identity {identity}, rotary {rotary}");
        check(&what, &[batch * seq * 3 * hidden], |inputs| {
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
            let y = Training::packed_attention(qkv.reshape([batch, seq, 3 * hidden]), heads, rotation, mask, 0.7);
            vec![y.reshape([batch * seq * hidden])]
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
            [next, m, v, sum].map(|x| flat(x.into_data()))
        };
        for (found, expected) in step(DType::F32).iter().flatten().zip(step(DType::F64).iter().flatten()) {
            assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(0.1), "{n}: {found}, not {expected}");
        }
    }
}

/// The plain definition of packed attention is that of the heads one by one.
#[test]
fn heads_side_by_side() {
    let [batch, seq, heads, size] = [2, 5, 3, 4];
    let qkv =
        Tensor::<Cpu, 1>::from_data(TensorData::from(random(batch * seq * 36, 0).as_slice()), &Default::default());
    let qkv = qkv.reshape([batch, seq, 3 * heads * size]);
    let y = Cpu::packed_attention(qkv.clone(), heads, None, None, 0.5);
    for head in 0..heads {
        let part = |k: usize| qkv.clone().narrow(2, k * heads * size + head * size, size).unsqueeze_dim::<4>(1);
        let alone = plain::causal_attention(part(0), part(1), part(2), None, 0.5).squeeze_dim::<3>(1);
        y.clone()
            .narrow(2, head * size, size)
            .into_data()
            .assert_approx_eq::<f32>(&alone.into_data(), burn::tensor::Tolerance::absolute(1e-6));
    }
}
