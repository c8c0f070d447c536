// A CUDA thread block on one thread of the host: each of its threads is a fiber that runs until it
// waits for others.
//
// What a device leaves open is chosen by the number of the block, so that a grid tries all of it:
// warps run from the first or from the last on, copies and products that are asynchronous are done
// when they are begun or when they are waited for, dynamic shared memory begins at any multiple of
// 128 bytes and with bytes that are NaN.
//
// Misuse ends the process with a message: threads of a warp that meet at different instructions,
// addresses outside the block's shared memory, barriers that cannot be passed.
#ifndef DENOISED_TESTS_EMULATED_CUDA_BLOCK_H_
#define DENOISED_TESTS_EMULATED_CUDA_BLOCK_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace denoised::emulated {

inline constexpr int kLanes = 32;

// Runs `kernel` in each thread of each block. kernel has its arguments bound.
cudaError_t RunGrid(dim3 grid, dim3 threads, size_t shared_bytes,
                    const std::function<void()>& kernel);

// The rest is called by the kernel's threads.

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
