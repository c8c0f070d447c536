// Works in the order in which they are due, with what a scheduler asks of all that lie before one:
// how many, how long, which of them will be late. Torch-free; belongs to one WorkQueue.
//
// A treap (Seidel and Aragon 1996) whose nodes hold sums over their subtree, so that every call is
// O(log n). Times are seconds on the queue's clock, lengths seconds of the device.
#ifndef DENOISED_RUNTIME_ENGINE_ORDER_TREE_H_
#define DENOISED_RUNTIME_ENGINE_ORDER_TREE_H_

#include <compare>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace denoised {

using WorkId = uint64_t;  // in the order of arrival

// Who is due first comes first; of two that are due at once the one that arrived first.
struct OrderKey {
  double due = 0;
  WorkId id = 0;
  auto operator<=>(const OrderKey&) const = default;
};

class OrderTree {
 public:
  struct Entry {
    OrderKey key;
    double seconds = 0;
    // Is to end by key.due, and counts as late where it will not.
    bool bound = false;
    // Whom to give up first where not all can be met: the heaviest.
    double weight = 0;
  };
  struct Sums {
    int64_t count = 0;
    double seconds = 0;
  };
  struct Slack {
    double bound, all;  // of the bound entries, of every entry
  };

  void Insert(const Entry& entry);
  // False where there is none of that key.
  bool Erase(const OrderKey& key);
  // New seconds and weight of one that is here.
  void Change(const OrderKey& key, double seconds, double weight);

  bool empty() const { return root_ == kNone; }
  Sums total() const;
  std::optional<OrderKey> First() const;
  // Of all before `key`, which need not be here.
  Sums Before(const OrderKey& key) const { return BeforeFrom(key, 0).sums; }
  // Of the longest beginning that takes no more than so many seconds.
  Sums Within(double seconds) const;
  // The first bound entry that ends after its due time where all run in order from `now` on.
  std::optional<OrderKey> FirstLate(double now) const;
  // The heaviest bound entry up to `key`, itself included.
  std::optional<OrderKey> HeaviestUpTo(const OrderKey& key) const;
  // The same, and by how much all of them can begin later than `now` without one among them ending
  // after its due time: negative where one does, infinite where there is none.
  struct Beginning {
    Sums sums;
    Slack slack;
  };
  Beginning BeforeFrom(const OrderKey& key, double now) const;

  // Nodes looked at since the tree was made: what tests count instead of time.
  uint64_t visits() const { return visits_; }

 private:
  using Index = int32_t;
  static constexpr Index kNone = -1;
  struct Node {
    Entry entry;
    uint32_t rank = 0;  // of the heap
    Index left = kNone, right = kNone;
    // Over the subtree.
    Sums sums;
    Slack slack = {};      // least due - seconds up to it
    double heaviest = -1;  // of the bound ones
  };

  Index Make(const Entry& entry);
  void Sum(Index at);
  // (all before key, the rest)
  std::pair<Index, Index> Split(Index at, const OrderKey& key);
  Index Join(Index left, Index right);
  Index Insert(Index at, Index made);
  Index Erase(Index at, const OrderKey& key, bool* found);
  void Change(Index at, const OrderKey& key, double seconds, double weight);
  Sums SumsOf(Index at) const { return at == kNone ? Sums{} : nodes_[at].sums; }
  double HeaviestOf(Index at) const { return at == kNone ? -1 : nodes_[at].heaviest; }
  Slack SlackOf(Index at, double later) const;
  Slack OwnSlack(const Node& node, double later) const;
  Node& At(Index at) const;

  mutable std::vector<Node> nodes_;  // At() counts also where nothing changes
  std::vector<Index> free_;
  Index root_ = kNone;
  uint32_t random_ = 2463534242;
  mutable uint64_t visits_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_ORDER_TREE_H_
