// Preloaded into a program, fills memory with FILL_MEMORY_WITH (0 to 255): what malloc and its like
// hand out, and what is given back. So that nothing that is read before it is written can be zero
// by luck, nor what the last owner left there. glibc's own MALLOC_PERTURB_ passes over small blocks
// and cannot hand out 0xFF, which is NaN in every format.
#include <malloc.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

extern "C" {

void* __libc_malloc(size_t size);                      // NOLINT: glibc's names
void* __libc_memalign(size_t alignment, size_t size);  // NOLINT
void* __libc_realloc(void* block, size_t size);        // NOLINT
void __libc_free(void* block);                         // NOLINT

static int pattern = -1;

__attribute__((constructor)) static void ReadPattern() {
  const char* const given = getenv("FILL_MEMORY_WITH");
  if (given != nullptr) pattern = atoi(given);
}

static void* Filled(void* block, size_t from = 0) {
  if (block != nullptr && pattern >= 0) {
    const size_t size = malloc_usable_size(block);
    if (size > from) memset(static_cast<char*>(block) + from, pattern, size - from);
  }
  return block;
}

void* malloc(size_t size) { return Filled(__libc_malloc(size)); }

void* memalign(size_t alignment, size_t size) { return Filled(__libc_memalign(alignment, size)); }

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** block, size_t alignment, size_t size) {
  *block = memalign(alignment, size);
  return *block == nullptr ? ENOMEM : 0;
}

void* realloc(void* block, size_t size) {
  const size_t before = block == nullptr ? 0 : malloc_usable_size(block);
  return Filled(__libc_realloc(block, size), before);
}

void free(void* block) {
  Filled(block);
  __libc_free(block);
}

}  // extern "C"
