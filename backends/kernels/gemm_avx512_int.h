// Sixteen int32 sums. Included inside the unnamed namespace of the files that use it.
struct Int32 {
  using F = __m512i;
  static constexpr int kLanes = 16;
  static F Zero() { return _mm512_setzero_si512(); }
  static F Load(const float* p) { return _mm512_loadu_si512(p); }
  static void Store(float* p, F x) { _mm512_storeu_si512(p, x); }
  static F Add(F a, F b) { return _mm512_add_epi32(a, b); }
  static F BroadcastUnit(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
};
