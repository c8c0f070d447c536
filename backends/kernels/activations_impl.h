// Activations over a vector type `V` of floats, with the same bits whatever its width: the same
// operations of every lane in the same order. Each instruction set's file includes this inside a
// namespace of its own, beside the V that it is written for and after exp2_part.h.

// 2^x for |x| <= 125, below 9e-8 relative. Of NaN: some number.
template <class V>
inline typename V::F Exp2(typename V::F x) {
  // A float of this size has no fraction: what is added to it is rounded, and is its lowest bits.
  const typename V::F shift = V::Set1(12582912.0f);  // 1.5 * 2^23
  const typename V::F shifted = V::Add(x, shift);
  const typename V::F part = V::Sub(x, V::Sub(shifted, shift));
  return V::AddToExponent(Exp2Part<V>(part), shifted);
}

// x / (1 + 2^y) for a y that is NaN only where x is, and there NaN. Where the power is near what a
// float holds, a zero of x's sign.
template <class V>
inline typename V::F OverOnePlusExp2(typename V::F x, typename V::F y) {
  const typename V::F most = V::Set1(125.0f);
  const typename V::F within = V::Min(most, V::Max(V::Set1(-125.0f), y));
  const typename V::F ratio = V::Div(x, V::Add(Exp2<V>(within), V::Set1(1.0f)));
  return V::ZeroWhereAbove(y, most, ratio, x);
}

// x / (1 + e^-x). The rounding of the power's exponent shows: 7e-8 |x| relative.
template <class V>
inline typename V::F Silu(typename V::F x) {
  return OverOnePlusExp2<V>(x, V::Mul(x, V::Set1(-1.44269504f)));
}

// x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): half of x (1 + tanh u), without its
// cancellation. Its power is of two: -2 sqrt(2 / pi) log2(e) is in both constants.
template <class V>
inline typename V::F GeluTanh(typename V::F x) {
  const typename V::F slope =
      V::FusedMulAdd(V::Mul(x, x), V::Set1(-0.10294324f), V::Set1(-2.3022082f));
  return OverOnePlusExp2<V>(x, V::Mul(x, slope));
}
