// A CUDA thread block on one thread of the host: each of its threads is a fiber that runs until it
// waits for others.
//
// What a device leaves open is chosen by the number of the block: warps run from the first or from
// the last on; copies, and products, that are asynchronous are done when they are begun or when
// they are waited for; dynamic shared memory begins at one multiple of 128 bytes or another, and
// with bytes that are NaN. Eight neighbouring blocks try each with each.
//
// Misuse ends the process with a message: threads of a warp that meet at different kinds of
// instructions, instructions that address what is outside the block's dynamic shared memory,
// barriers that cannot be passed. Not seen: fences that are missing, pointers to memory of the
// host, reads of static shared memory that nothing has written, more registers than there are.
#ifndef DENOISED_TESTS_EMULATED_CUDA_BLOCK_H_
#define DENOISED_TESTS_EMULATED_CUDA_BLOCK_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace denoised::emulated {

inline constexpr int kLanes = 32;

// Runs `kernel` in each thread of each block. kernel has its arguments bound.
cudaError_t RunGrid(dim3 grid, dim3 threads, size_t shared_bytes,
                    const std::function<void()>& kernel);

// The rest is called by the kernel's threads.

// Ends the process; says which thread it was.
[[noreturn]] void Fail(const std::string& what);

// What all threads of a warp do together, once all of them have come: `posts` are what they gave.
using Together = void (*)(void* const (&posts)[kLanes]);
void MeetWarp(Together act, void* post);

// Waits for all threads of the block that have not ended; whether any gave true.
bool MeetBlock(bool any);

unsigned char* DynamicShared();
// Of a pointer into dynamic shared memory, and back: `bytes` from there on are inside.
uint32_t SharedAddress(const void* pointer);
void* SharedPointer(uint32_t address, size_t bytes);

// Groups of work that is asynchronous: of a thread (copies) or of a warp (products), numbered by
// `kind`. Begin does it at once or keeps it, Commit ends a group, Wait does all groups but the
// newest `pending`.
enum class Async { kCopies, kProducts };
void BeginAsync(Async kind, std::function<void()> work);
void CommitAsync(Async kind);
void WaitAsync(Async kind, int pending);

}  // namespace denoised::emulated

#endif  // DENOISED_TESTS_EMULATED_CUDA_BLOCK_H_
