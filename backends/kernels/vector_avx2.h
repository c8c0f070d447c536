// Eight floats, a unit of the tile kernel each. Included inside the unnamed namespace of the files
// that use it.
struct Float32 {
  using F = __m256;
  static constexpr bool kTiles = false;
  static constexpr int kKeyGroup = kGroup;
  static constexpr int kLanes = 8;
  static constexpr int kScoreColumns = 3;
  static constexpr int kWeighColumns = 2;
  static constexpr int kColumns = 3;  // 12 accumulators, 3 columns, 1 broadcast: all 16 registers
  static constexpr bool kPairs = false;
  static constexpr bool kInt8 = false;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set1(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F LoadUnits(const uint32_t* p) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F BroadcastUnit(const uint32_t* p) {
    return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(*p)));
  }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F FusedMulAdd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F MulAdd(F acc, F a, F b) { return _mm256_fmadd_ps(a, b, acc); }

  static void StorePair(F p0, F p1, uint32_t* out, int width) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_castps_si256(p0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + width), _mm256_castps_si256(p1));
  }

  static void HideRows(float* scores, uint64_t mask) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (((mask >> lane) & 1) == 0) scores[lane] = -__builtin_inff();
    }
  }

  // 2^x for x <= 0, below 9e-8 relative; 0 below kLeastExponent and for -inf, NaN for NaN.
  static F Exp2Float(F x) {
    const F smallest = _mm256_set1_ps(kLeastExponent);
    const F zero = _mm256_cmp_ps(x, smallest, _CMP_LT_OQ);
    x = _mm256_max_ps(smallest, x);  // in this order NaN stays
    const F whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F part = _mm256_sub_ps(x, whole);
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero,
                            _mm256_mul_ps(Exp2Part<Float32>(part), _mm256_castsi256_ps(exponent)));
  }
  static F Exp2(F x) { return Exp2Float(x); }
};
