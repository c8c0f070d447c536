// Sixteen floats. Included inside the unnamed namespace of the files that use it.
struct Vector512 {
  using F = __m512;
  static constexpr bool kTiles = false;
  static constexpr int kKeyGroup = kGroup;
  static constexpr int kLanes = 16;
  static constexpr int kScoreColumns = 4;
  static constexpr int kWeighColumns = 4;
  static constexpr int kColumns = 4;  // 16 accumulators, 4 columns, 1 broadcast: fits 32 registers

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F LoadUnits(const uint32_t* p) { return _mm512_loadu_ps(p); }
  static F BroadcastUnit(const uint32_t* p) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*p)));
  }
  static bool AllEqual(F a, F b) { return _mm512_cmpeq_ps_mask(a, b) == 0xffff; }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F FusedMulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  // Scores of lanes whose bit is clear become -inf.
  static void HideRows(float* scores, uint64_t mask) {
    const __mmask16 hidden = static_cast<__mmask16>(~mask);
    _mm512_mask_storeu_ps(scores, hidden, _mm512_set1_ps(-__builtin_inff()));
  }

  // Lanes that count: what is not a number does.
  static __mmask16 Counts(F x) {
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(kLeastExponent), _CMP_NLT_UQ);
  }

  // 2^x for x <= 0, below 9e-8 relative; 0 below kLeastExponent and for -inf, NaN for NaN. Lanes
  // that become 0 take no part in the last step, the only one that could underflow.
  static F Exp2Float(F x) {
    const __mmask16 counts = Counts(x);
    const F whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F part = _mm512_sub_ps(x, whole);
    return _mm512_maskz_scalef_ps(counts, Exp2Part<Vector512>(part), whole);
  }

  // As above with a minimax cubic on [-0.5, 0.5], below 1e-4 relative.
  static F Exp2Short(F x) {
    const __mmask16 counts = Counts(x);
    const F whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F part = _mm512_sub_ps(x, whole);
    F y = _mm512_set1_ps(5.517120792e-2f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.426102682e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.932609793e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.999281265e-1f));
    return _mm512_maskz_scalef_ps(counts, y, whole);
  }
};

// Units of one float32.
struct Float32 : Vector512 {
  static constexpr bool kPairs = false;
  static constexpr bool kInt8 = false;
  static F MulAdd(F acc, F a, F b) { return _mm512_fmadd_ps(a, b, acc); }
  static F Exp2(F x) { return Exp2Float(x); }
  static void StorePair(F p0, F p1, uint32_t* out, int width) {
    _mm512_storeu_ps(out, p0);
    _mm512_storeu_ps(out + width, p1);
  }
};

// Int8 scores, all else as `Values` has it; what a unit of q and k is, is up to the heirs.
template <class Values>
struct IntegerScores : Values {
  using F = typename Values::F;
  using I = __m512i;
  static constexpr bool kInt8 = true;
  static I LoadInts(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F ToFloat(I x) { return _mm512_cvtepi32_ps(x); }
};
