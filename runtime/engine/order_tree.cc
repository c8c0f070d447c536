#include "runtime/engine/order_tree.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace denoised {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

OrderTree::Sums operator+(const OrderTree::Sums& a, const OrderTree::Sums& b) {
  return {.count = a.count + b.count, .seconds = a.seconds + b.seconds};
}

OrderTree::Sums One(const OrderTree::Entry& entry) {
  return {.count = 1, .seconds = entry.seconds};
}

OrderTree::Slack Least(const OrderTree::Slack& a, const OrderTree::Slack& b) {
  return {std::min(a.bound, b.bound), std::min(a.all, b.all)};
}

}  // namespace

OrderTree::Node& OrderTree::At(Index at) const {
  ++visits_;
  return nodes_[static_cast<size_t>(at)];
}

// What is left of it where the subtree begins so much later.
OrderTree::Slack OrderTree::SlackOf(Index at, double later) const {
  if (at == kNone) return {kInfinite, kInfinite};
  const Slack& slack = nodes_[static_cast<size_t>(at)].slack;
  return {slack.bound - later, slack.all - later};
}

OrderTree::Slack OrderTree::OwnSlack(const Node& node, double later) const {
  const double slack = node.entry.key.due - SumsOf(node.left).seconds - node.entry.seconds - later;
  return {node.entry.bound ? slack : kInfinite, slack};
}

OrderTree::Index OrderTree::Make(const Entry& entry) {
  Index made = static_cast<Index>(nodes_.size());
  if (free_.empty()) {
    nodes_.emplace_back();
  } else {
    made = free_.back();
    free_.pop_back();
  }
  // xorshift32 (Marsaglia 2003): the same tree in every run.
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  nodes_[made] = Node{};
  nodes_[made].entry = entry;
  nodes_[made].rank = random_;
  Sum(made);
  return made;
}

void OrderTree::Sum(Index at) {
  Node& node = At(at);
  const Sums left = SumsOf(node.left), through = left + One(node.entry);
  node.sums = through + SumsOf(node.right);
  node.slack =
      Least(Least(SlackOf(node.left, 0), OwnSlack(node, 0)), SlackOf(node.right, through.seconds));
  node.heaviest = std::max(
      {HeaviestOf(node.left), HeaviestOf(node.right), node.entry.bound ? node.entry.weight : -1});
}

std::pair<OrderTree::Index, OrderTree::Index> OrderTree::Split(Index at, const OrderKey& key) {
  if (at == kNone) return {kNone, kNone};
  Node& node = At(at);
  if (node.entry.key < key) {
    const auto [left, right] = Split(node.right, key);
    node.right = left;
    Sum(at);
    return {at, right};
  }
  const auto [left, right] = Split(node.left, key);
  node.left = right;
  Sum(at);
  return {left, at};
}

OrderTree::Index OrderTree::Join(Index left, Index right) {
  if (left == kNone) return right;
  if (right == kNone) return left;
  if (At(left).rank > At(right).rank) {
    nodes_[left].right = Join(nodes_[left].right, right);
    Sum(left);
    return left;
  }
  nodes_[right].left = Join(left, nodes_[right].left);
  Sum(right);
  return right;
}

OrderTree::Index OrderTree::Insert(Index at, Index made) {
  if (at == kNone) return made;
  const OrderKey key = nodes_[made].entry.key;
  if (nodes_[made].rank > At(at).rank) {
    std::tie(nodes_[made].left, nodes_[made].right) = Split(at, key);
    Sum(made);
    return made;
  }
  Node& node = nodes_[at];
  Index& side = key < node.entry.key ? node.left : node.right;
  side = Insert(side, made);
  Sum(at);
  return at;
}

void OrderTree::Insert(const Entry& entry) {
  const Index made = Make(entry);
  root_ = Insert(root_, made);
}

OrderTree::Index OrderTree::Erase(Index at, const OrderKey& key, bool* found) {
  if (at == kNone) return kNone;
  Node& node = At(at);
  if (node.entry.key == key) {
    *found = true;
    free_.push_back(at);
    return Join(node.left, node.right);
  }
  Index& side = key < node.entry.key ? node.left : node.right;
  side = Erase(side, key, found);
  if (*found) Sum(at);
  return at;
}

bool OrderTree::Erase(const OrderKey& key) {
  bool found = false;
  root_ = Erase(root_, key, &found);
  return found;
}

void OrderTree::Change(Index at, const OrderKey& key, double seconds, double weight) {
  if (at == kNone) return;
  Node& node = At(at);
  if (node.entry.key == key) {
    node.entry.seconds = seconds;
    node.entry.weight = weight;
  } else {
    Change(key < node.entry.key ? node.left : node.right, key, seconds, weight);
  }
  Sum(at);
}

void OrderTree::Change(const OrderKey& key, double seconds, double weight) {
  Change(root_, key, seconds, weight);
}

OrderTree::Sums OrderTree::total() const { return SumsOf(root_); }

std::optional<OrderKey> OrderTree::First() const {
  if (root_ == kNone) return std::nullopt;
  Index at = root_;
  while (At(at).left != kNone) at = nodes_[at].left;
  return nodes_[at].entry.key;
}

OrderTree::Sums OrderTree::Within(double seconds) const {
  Sums within;
  for (Index at = root_; at != kNone;) {
    const Node& node = At(at);
    const Sums through = within + SumsOf(node.left) + One(node.entry);
    if (through.seconds <= seconds) {
      within = through;
      at = node.right;
    } else {
      at = node.left;
    }
  }
  return within;
}

std::optional<OrderKey> OrderTree::FirstLate(double now) const {
  if (SlackOf(root_, now).bound >= 0) return std::nullopt;
  for (Index at = root_;;) {
    const Node& node = At(at);
    if (SlackOf(node.left, now).bound < 0) {
      at = node.left;
    } else if (OwnSlack(node, now).bound < 0 || node.right == kNone) {
      return node.entry.key;
    } else {
      now += SumsOf(node.left).seconds + node.entry.seconds;
      at = node.right;
    }
  }
}

std::optional<OrderKey> OrderTree::HeaviestUpTo(const OrderKey& key) const {
  // The best of the entries and whole left subtrees on the way down.
  double best = -1;
  Index entry = kNone, subtree = kNone;
  for (Index at = root_; at != kNone;) {
    const Node& node = At(at);
    if (key < node.entry.key) {
      at = node.left;
      continue;
    }
    if (HeaviestOf(node.left) > best) {
      best = HeaviestOf(node.left);
      subtree = node.left;
      entry = kNone;
    }
    if (node.entry.bound && node.entry.weight > best) {
      best = node.entry.weight;
      entry = at;
      subtree = kNone;
    }
    at = node.right;
  }
  for (Index at = subtree; at != kNone && entry == kNone;) {
    const Node& node = At(at);
    if (node.entry.bound && node.entry.weight == best) {
      entry = at;
    } else {
      at = HeaviestOf(node.left) == best ? node.left : node.right;
    }
  }
  if (entry == kNone) return std::nullopt;
  return nodes_[entry].entry.key;
}

OrderTree::Beginning OrderTree::BeforeFrom(const OrderKey& key, double now) const {
  Beginning before = {{}, {kInfinite, kInfinite}};
  for (Index at = root_; at != kNone;) {
    const Node& node = At(at);
    if (node.entry.key < key) {
      const double later = now + before.sums.seconds;
      before.slack = Least(before.slack, Least(SlackOf(node.left, later), OwnSlack(node, later)));
      before.sums = before.sums + SumsOf(node.left) + One(node.entry);
      at = node.right;
    } else {
      at = node.left;
    }
  }
  return before;
}

}  // namespace denoised
