// Scores from bytes on AVX-512 VNNI (VPDPBUSD). Included inside the unnamed namespace of the files
// that use it, after one that has IntegerScores.
template <class Values>
struct ByteScores : IntegerScores<Values> {
  using F = typename Values::F;
  using I = __m512i;
  // By hand: GCC 12 copies the accumulator before and after each of the intrinsic's.
  static I DotUnits(I acc, F query, F key) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(key), "v"(query));
    return acc;
  }
};
