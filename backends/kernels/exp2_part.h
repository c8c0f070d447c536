// The polynomial that the kernels' exponentials in float32 are made of.
#ifndef DENOISED_BACKENDS_KERNELS_EXP2_PART_H_
#define DENOISED_BACKENDS_KERNELS_EXP2_PART_H_

namespace denoised::kernels {

// 2^x for x in [-0.5, 0.5], below 9e-8 relative: of the polynomials of degree 6 that are 1 at 0 the
// one with the least relative error (2.6e-9 without roundings). Over a vector type `V` of floats
// that has Set1 and FusedMulAdd(a, b, c), a b + c; the same bits whatever its width.
template <class V>
inline typename V::F Exp2Part(typename V::F x) {
  typename V::F y = V::Set1(1.55946781613e-4f);
  y = V::FusedMulAdd(y, x, V::Set1(1.34066439024e-3f));
  y = V::FusedMulAdd(y, x, V::Set1(9.61769297299e-3f));
  y = V::FusedMulAdd(y, x, V::Set1(5.55031055101e-2f));
  y = V::FusedMulAdd(y, x, V::Set1(2.40226527829e-1f));
  y = V::FusedMulAdd(y, x, V::Set1(6.93147214968e-1f));
  return V::FusedMulAdd(y, x, V::Set1(1.0f));
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_EXP2_PART_H_
