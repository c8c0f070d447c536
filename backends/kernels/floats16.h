// Sixteen floats on AVX-512, the first `left` of which are there and the others zeros, for
// activations_impl.h and gemm_finish_impl.h. Included inside the unnamed namespace of the files
// that use it.

struct Floats16 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F FusedMulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F AddToExponent(F x, F whole) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
  }
  static F ZeroWhereAbove(F y, F most, F ratio, F x) {
    const F zero = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
    return _mm512_mask_mov_ps(ratio, _mm512_cmp_ps_mask(y, most, _CMP_GT_OQ), zero);
  }

  static __mmask16 Lanes(int left) {
    return static_cast<__mmask16>(left >= kLanes ? 0xffff : (1 << left) - 1);
  }
  static F Load(const float* p, int left) { return _mm512_maskz_loadu_ps(Lanes(left), p); }
  static void Store(float* p, int left, F x) { _mm512_mask_storeu_ps(p, Lanes(left), x); }
  // Of each number's bits the upper half is what StoreEight of rounding.h gives, but for NaN.
  static __m512i RoundUp(F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  }
  static void Store(uint16_t* p, int left, F x) {
    const __m512i words =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(RoundUp(x), 16),
                              _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(p, Lanes(left), _mm512_cvtepi32_epi16(words));
  }
  // A whole panel's columns.
  static void StoreHalves(uint16_t* p, F low, F high) {
    const __m512i uppers =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __mmask32 nan = _mm512_kunpackw(_mm512_cmp_ps_mask(high, high, _CMP_UNORD_Q),
                                          _mm512_cmp_ps_mask(low, low, _CMP_UNORD_Q));
    const __m512i words = _mm512_permutex2var_epi16(RoundUp(low), uppers, RoundUp(high));
    _mm512_storeu_si512(p, _mm512_mask_mov_epi16(words, nan, _mm512_set1_epi16(0x7fc0)));
  }
};
