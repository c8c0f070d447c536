#include "server/metrics_series.h"

#include <algorithm>
#include <stdexcept>

namespace denoised {
namespace {

size_t HashOf(std::string_view values) { return std::hash<std::string_view>()(values); }

std::vector<std::string_view> Split(std::string_view values, size_t count) {
  std::vector<std::string_view> parts;
  parts.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const size_t end = std::min(values.find('\0'), values.size());
    parts.push_back(values.substr(0, end));
    values.remove_prefix(std::min(end + 1, values.size()));
  }
  return parts;
}

}  // namespace

AnySeries::AnySeries(FamilyText text, std::vector<const AnySeries*>* all)
    : text_(std::move(text)), slots_(4) {
  all->push_back(this);
}

bool AnySeries::Append(Place* place, size_t full, std::string* out) const {
  std::lock_guard lock(mutex_);
  if (place->next == 0) place->end = next_number_;
  for (auto entry = From(place->next); entry != entries_.end(); ++entry) {
    if ((*entry)->number >= place->end) break;
    if (out->size() >= full) return false;
    if (place->next == 0) *out += text_.head();
    text_.Append(Split((*entry)->values, text_.label_count()), (*entry)->Collect(), out);
    place->next = (*entry)->number + 1;
  }
  return true;
}

// Its number is beyond its place by as many as were forgotten before it: mostly none.
AnySeries::Entries::const_iterator AnySeries::From(uint64_t number) const {
  const auto last = entries_.begin() + static_cast<ptrdiff_t>(std::min(number, entries_.size()));
  if (last == entries_.begin() || last[-1]->number < number) return last;
  return std::partition_point(entries_.begin(), last,
                              [&](const auto& entry) { return entry->number < number; });
}

void AnySeries::KeepOnly(const std::set<Values>& values) {
  Forget([&](const Values& own) { return !values.contains(own); });
}

size_t AnySeries::Forget(const std::function<bool(const Values&)>& which) {
  std::lock_guard lock(mutex_);
  const size_t gone = std::erase_if(entries_, [&](const auto& entry) {
    const auto parts = Split(entry->values, text_.label_count());
    return which(Values(parts.begin(), parts.end()));
  });
  if (gone == 0) return entries_.size();
  slots_.assign(slots_.size(), {});
  for (const auto& entry : entries_) Put({HashOf(entry->values), entry.get()});
  return entries_.size();
}

AnySeries::Entry& AnySeries::Find(std::initializer_list<std::string_view> values) {
  const std::string_view joined = values.size() == 1 ? *values.begin() : Join(values);
  const size_t hash = HashOf(joined), mask = slots_.size() - 1;
  for (size_t i = hash & mask; slots_[i].entry != nullptr; i = (i + 1) & mask) {
    if (slots_[i].hash == hash && slots_[i].entry->values == joined) return *slots_[i].entry;
  }
  if (values.size() != text_.label_count()) throw std::logic_error("label values: " + text_.head());
  if (4 * entries_.size() >= 3 * slots_.size()) Grow();
  std::unique_ptr<Entry> made = Make();
  made->values = joined;
  made->number = next_number_++;
  entries_.push_back(std::move(made));
  Put({hash, entries_.back().get()});
  return *entries_.back();
}

std::string_view AnySeries::Join(std::initializer_list<std::string_view> values) {
  joined_.clear();
  for (const std::string_view& value : values) {
    if (&value != values.begin()) joined_ += '\0';
    joined_ += value;
  }
  return joined_;
}

void AnySeries::Put(const Slot& slot) {
  const size_t mask = slots_.size() - 1;
  size_t i = slot.hash & mask;
  while (slots_[i].entry != nullptr) i = (i + 1) & mask;
  slots_[i] = slot;
}

void AnySeries::Grow() {
  std::vector<Slot> old(2 * slots_.size());
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.entry != nullptr) Put(slot);
  }
}

}  // namespace denoised
