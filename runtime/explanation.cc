#include "runtime/explanation.h"

#include <array>

namespace denoised {

std::string_view WishOutcomeName(WishOutcome outcome) {
  // In the enum's order.
  constexpr std::array<std::string_view, 4> kNames = {"granted", "refused", "hidden", "elsewhere"};
  return kNames.at(static_cast<size_t>(outcome));
}

std::string SourceText(const Wish& wish) {
  std::string text(SelectionSourceName(wish.source));
  if (!wish.lease_id.empty()) text += " " + wish.lease_id;
  if (wish.rule) text += " rule " + std::to_string(*wish.rule);
  return text;
}

std::string ToText(const std::vector<ExplainedWish>& wishes) {
  std::string text;
  for (const ExplainedWish& one : wishes) {
    text += (text.empty() ? "" : "\n") + SourceText(one.wish) + " " +
            std::string(AttnBackendName(one.wish.backend)) + ": " +
            std::string(WishOutcomeName(one.outcome)) +
            (one.reason.empty() ? "" : ": " + one.reason);
  }
  return text;
}

}  // namespace denoised
