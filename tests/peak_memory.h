// How far this process' own memory rises above where it stood, by the kernel's own mark. Pages of
// programs and files do not count: the kernel takes and brings them as it likes.
#ifndef DENOISED_TESTS_PEAK_MEMORY_H_
#define DENOISED_TESTS_PEAK_MEMORY_H_

#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>

namespace denoised {

class PeakMemory {
 public:
  // Sanitizers keep what is freed, and shadows of it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr bool kMeasures = false;
#else
  static constexpr bool kMeasures = true;
#endif

  // Gives unused memory back and sets the mark (VmHWM) to what is resident now.
  PeakMemory() {
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;
    start_files_ = Files();
    start_ = Now() - start_files_;
  }
  // Bytes, highest so far less the start.
  int64_t Bytes() const { return Field("VmHWM:") - std::max(start_files_, Files()) - start_; }

  static int64_t Now() { return Field("VmRSS:"); }

 private:
  static int64_t Files() { return Field("RssFile:"); }

  static int64_t Field(const std::string& name) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
      int64_t kib = 0;
      if (word == name && status >> kib) return kib * 1024;
    }
    return 0;
  }

  int64_t start_files_ = 0, start_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_PEAK_MEMORY_H_
