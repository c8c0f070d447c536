// A call that answers later, waited for. Any thread but the one that answers.
#ifndef DENOISED_RUNTIME_WAITED_H_
#define DENOISED_RUNTIME_WAITED_H_

#include <future>
#include <memory>
#include <utility>

namespace denoised {

// `ask(done)` sees to it that `done(value)` is called once, on any thread: that value.
template <typename Value, typename Ask>
Value Waited(const Ask& ask) {
  // Shared: the other thread may still be inside set_value when this one has the value.
  auto answer = std::make_shared<std::promise<Value>>();
  ask([answer](Value value) { answer->set_value(std::move(value)); });
  return answer->get_future().get();
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_WAITED_H_
