// What is made once for each device that asks for it, such as a job's geometry in device memory.
#ifndef DENOISED_BACKENDS_PER_DEVICE_H_
#define DENOISED_BACKENDS_PER_DEVICE_H_

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <mutex>

namespace denoised {

// Lives as long as its owner; what it gives out may live longer. Thread-safe.
template <class T>
class PerDevice {
 public:
  // The device's, which `make()` gives at the first call for it.
  template <class Make>
  std::shared_ptr<const T> Of(const at::Device& device, const Make& make) const {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const T>& made = made_[device.index()];
    if (made == nullptr) made = std::make_shared<const T>(make());
    return made;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<int, std::shared_ptr<const T>> made_;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_PER_DEVICE_H_
