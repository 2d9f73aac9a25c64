// A session's directory, the worker that runs in it, and the release of both. Knows nothing of requests.
#ifndef TR_MMAP_PLACE_HPP
#define TR_MMAP_PLACE_HPP

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "launch.hpp"
#include "manifest.hpp"
#include "pool.hpp"
#include "process.hpp"
#include "receiver.hpp"
#include "watch.hpp"
#include "workspace.hpp"

namespace tr {

/// What a session may be told beside its script and its name.
struct SessionOptions {
    std::string python;                          // the worker's interpreter; "" for $TR_PYTHON, or the package's own
    std::optional<std::uint64_t> budget_nbytes;  // most bytes of tensors that each side holds in shared memory
    double block_ms = 0;        // at the budget, how long to wait for the other side before it is OutOfSpace
    bool has_checksum = false;  // both sides store a CRC-32 of each tensor, and compare it on receipt
};

namespace detail {

/// One worker's life: what exists from start() until that worker is gone.
struct Run {
    Run(std::unique_ptr<Channel> own_channel, std::shared_ptr<WorkerProcess> own_process, const std::string& directory,
        bool is_to_verify)
        : channel(std::move(own_channel)),
          process(std::move(own_process)),
          receiver(directory, is_to_verify),
          watch(process->identity(), [bell = channel.get()] { bell->wake(); }) {}

    bool is_over() const noexcept { return watch.is_dead(); }

    const std::unique_ptr<Channel> channel;
    const std::shared_ptr<WorkerProcess> process;
    Receiver receiver;
    PeerWatch watch;  // last, so that its thread ends before what it rings is gone
};

/// Whether a file is what a worker leaves: result_<n>.tsr, request.<x>.spill, response.<x>.spill.
inline bool is_remains(std::string_view name) {
    return is_all_digits(name_between(name, "result_", ".tsr")) ||
           is_plain_name(name_between(name, "request.", ".spill"), 64) ||
           is_plain_name(name_between(name, "response.", ".spill"), 64);
}

class Place {
public:
    Place(const std::string& session_id, const SessionOptions& options)
        : options_(options), session_id_(session_id), workspace_(Workspace::locate()) {
        try {
            workspace_.sweep();
        } catch (const TRException&) {
            // What cannot be removed is not this session's business.
        }
        directory_ = workspace_.claim(manifest());
        pool_ = std::make_unique<SegmentPool>(directory_, options.budget_nbytes, options.block_ms, options.has_checksum,
                                              [this] {
                                                  const std::shared_ptr<Run> last = run();
                                                  return last && last->is_over();
                                              });
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    ~Place() { release(); }

    /// End the worker if it lives, remove the directory. Idempotent.
    void release() noexcept {
        if (is_released_ || !is_of_this_process()) return;  // a fork's child: all of this is its parent's
        is_released_ = true;
        end(take_run());
        pool_->close();
        try {
            workspace_.release(session_id_);
        } catch (...) {
            // The next sweep removes it.
        }
    }

    const std::string& directory() const noexcept { return directory_; }
    const std::string& session_id() const noexcept { return session_id_; }
    SegmentPool& pool() noexcept { return *pool_; }
    bool is_of_this_process() const { return ::getpid() == owner_pid_; }

    /// The worker's run, null if there is none; for any thread.
    std::shared_ptr<Run> run() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return run_;
    }

    /// Start a worker over new control files; does not wait for it.
    void start(const std::string& script_path, bool is_quiet) {
        workspace_.check_session(session_id_);
        remove_remains();
        Manifest known = manifest();
        known.worker_mark = std::to_string(::getpid()) + "-" + random_hex(8);
        known.doorbells = Channel::new_doorbells();
        // Before the doorbells exist: whoever sweeps knows their names, at whatever moment we are killed.
        write_manifest(directory_, known);
        auto channel = std::make_unique<Channel>(directory_, known.doorbells);
        const std::shared_ptr<WorkerProcess> process =
            launch(script_path, session_id_, workspace_, options_.python, known.worker_mark, is_quiet);
        try {
            known.worker = process->identity();
            write_manifest(directory_, known);
            auto run = std::make_shared<Run>(std::move(channel), process, directory_, options_.has_checksum);
            const std::lock_guard<std::mutex> lock(mutex_);
            run_ = std::move(run);
        } catch (...) {
            process->terminate_tree(0);
            throw;
        }
    }

    /// Let go of a worker that has ended, and of what it left.
    void end_run() {
        end(take_run());
        remove_remains();
    }

private:
    Manifest manifest() const {
        Manifest result;
        result.session_id = session_id_;
        result.controller = Identity::current();
        result.budget_nbytes = options_.budget_nbytes;
        result.block_ms = options_.block_ms;
        result.has_checksum = options_.has_checksum;
        result.created_ms = now_ms();
        return result;
    }

    /// End what lives of the worker and its children.
    static void end(const std::shared_ptr<Run>& run) noexcept {
        try {
            // Children of a worker that has ended had their time: it could have waited for them.
            if (run) run->process->terminate_tree(run->process->is_alive() ? 1000 : 0);
        } catch (...) {
            // It ends by itself when this process does.
        }
    }

    std::shared_ptr<Run> take_run() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(run_, nullptr);
    }

    /// Remove a dead worker's results and long messages; its successor begins with the same names.
    void remove_remains() {
        std::error_code error;
        std::vector<std::filesystem::path> found;
        for (const auto& entry : std::filesystem::directory_iterator(directory_, error)) {
            if (is_remains(entry.path().filename().string())) found.push_back(entry.path());
        }
        for (const auto& path : found) unlink_file(path.string());
    }

    SessionOptions options_;
    std::string session_id_;
    Workspace workspace_;
    std::string directory_;
    pid_t owner_pid_ = ::getpid();
    std::unique_ptr<SegmentPool> pool_;
    mutable std::mutex mutex_;  // of run_
    std::shared_ptr<Run> run_;
    bool is_released_ = false;
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_PLACE_HPP
