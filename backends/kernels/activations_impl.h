// Activations over a vector type `V` of floats, with the same bits whatever its width: the same
// operations of every lane in the same order. Each instruction set's file includes this inside its
// own unnamed namespace, beside the V that it is written for.

// e^x for |x| <= 88, below 2e-7 relative.
template <class V>
inline typename V::F Exp(typename V::F x) {
  const typename V::F whole = V::Round(V::Mul(x, V::Set1(1.44269504f)));
  typename V::F part = V::NegativeMulAdd(whole, V::Set1(0.693359375f), x);
  part = V::NegativeMulAdd(whole, V::Set1(-2.12194440e-4f), part);
  typename V::F y = V::Set1(1.9875691500e-4f);
  y = V::MulAdd(y, part, V::Set1(1.3981999507e-3f));
  y = V::MulAdd(y, part, V::Set1(8.3334519073e-3f));
  y = V::MulAdd(y, part, V::Set1(4.1665795894e-2f));
  y = V::MulAdd(y, part, V::Set1(1.6666665459e-1f));
  y = V::MulAdd(y, part, V::Set1(5.0000001201e-1f));
  y = V::MulAdd(V::Mul(part, part), y, V::Add(part, V::Set1(1.0f)));
  return V::Mul(y, V::PowerOfTwo(whole));
}

// x / (1 + e^y); NaN in either stays NaN. Where e^y would be infinite, a zero of x's sign.
template <class V>
inline typename V::F OverOnePlusExp(typename V::F x, typename V::F y) {
  const typename V::F within = V::Min(V::Set1(87.0f), V::Max(V::Set1(-87.0f), y));
  const typename V::F ratio = V::Div(x, V::Add(Exp<V>(within), V::Set1(1.0f)));
  return V::ZeroWhereAbove(y, V::Set1(87.0f), ratio, x);
}

template <class V>
inline typename V::F Silu(typename V::F x) {
  return OverOnePlusExp<V>(x, V::Sub(V::Set1(0.0f), x));
}

// x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): half of x (1 + tanh u), without its
// cancellation.
template <class V>
inline typename V::F GeluTanh(typename V::F x) {
  const typename V::F cube = V::Mul(V::Mul(x, x), x);
  const typename V::F u = V::MulAdd(cube, V::Set1(0.044715f), x);
  return OverOnePlusExp<V>(x, V::Mul(u, V::Set1(-1.5957691216057308f)));
}
