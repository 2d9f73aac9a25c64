// Tests of what crosses a session with a Python worker: texts, errors, tensors, loans, under budgets and threads.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

#include "session.hpp"

TEST(session_text) {
    Ready& s = shared();
    CHECK_EQUAL(s.fetch_response("length abc"), "3");
    s.send_request(R"({"cmd": "length", "params": "abcd"})");
    while (!s.new_response()) std::this_thread::yield();
    CHECK_EQUAL(s.read_response(), "4");
    CHECK_EQUAL(s.read_response(), "");
    CHECK(!s.new_response());
    CHECK(s.is_ready() && !s.is_busy() && s.is_alive());
    s.send_request("length abc");
    CHECK(s.wait_until_ok());
    CHECK_EQUAL(s.wait_for_response(), "3");
    s.send_request("length a");
    s.send_request("length ab");  // the first answer is kept
    CHECK_EQUAL(s.wait_for_response(), "1");
    CHECK_EQUAL(s.wait_for_response(), "2");
    thrown_by<BadMessage>([&] { s.send_request(" "); });
    thrown_by<BadMessage>([&] { s.fetch_response("length \xff"); });
    CHECK_EQUAL(s.session_id(), "shared");
    CHECK(exists(s.session_dir() + "/session.json"));
}

TEST(session_timeouts_that_are_no_time_are_refused) {
    Ready& s = shared();
    for (const double bad : {-1.0, -1e-9, -std::numeric_limits<double>::infinity(), std::nan("")}) {
        const std::string text = thrown_by<BadMessage>([&] { s.fetch_response("length abc", bad); }).what();
        CHECK(text.find("timeout_ms is ") == 0 && text.find("0 or more") != std::string::npos);
        thrown_by<BadMessage>([&] { s.send_request("length abc", bad); });
        thrown_by<BadMessage>([&] { s.wait_for_response(bad); });
        thrown_by<BadMessage>([&] { s.wait_for_tensors(bad); });
        thrown_by<BadMessage>([&] { s.calculate("double", Tensor::ones(Shape(2)), bad); });
        thrown_by<BadMessage>([&] { s.wait_until_ready(bad); });
        thrown_by<BadMessage>([&] { s.wait_until_ok(bad); });
        thrown_by<BadMessage>([&] { s.join(bad); });
        thrown_by<BadMessage>([&] { s.please_exit(bad); });
    }
    CHECK_EQUAL(s.fetch_response("length abc"), "3");  // none of them has ended or sent anything
}

static bool does_status_file_say(const PythonSession& s, const std::string& word) {
    for (const auto until = Clock::now() + std::chrono::seconds(30); Clock::now() < until; std::this_thread::yield()) {
        std::ifstream file(s.session_dir() + "/status.txt");
        std::string line;
        if (std::getline(file, line) && line == word) return true;
    }
    return false;
}

TEST(session_status_file_says_what_the_worker_does) {
    Ready& s = shared();
    for (int round = 0; round < 3; ++round) {
        CHECK_EQUAL(s.fetch_response("length abc"), "3");
        CHECK(does_status_file_say(s, "ok"));
        s.send_request("sleep 0.5");  // not waited for
        CHECK(does_status_file_say(s, "busy"));
        CHECK(!s.new_response());
        s.wait_for_response();
        CHECK(does_status_file_say(s, "ok"));
        std::thread waiting([&] { s.fetch_response("sleep 0.5"); });
        CHECK(does_status_file_say(s, "busy"));
        waiting.join();
        CHECK(does_status_file_say(s, "ok"));
    }
}

TEST(session_long_messages_cross_in_files) {
    Ready& s = shared();
    CHECK_EQUAL(s.fetch_response("length " + std::string(300'000, 'x')), "300000");
    CHECK_EQUAL(s.fetch_response("text 200000").size(), 400'000u);
    CHECK_EQUAL(s.fetch_response("length ab"), "2");
    for (const auto& entry : std::filesystem::directory_iterator(s.session_dir())) {
        CHECK(entry.path().extension() != ".spill");
    }
    thrown_by<BadMessage>([&] { s.fetch_response("length " + std::string(17 << 20, 'x')); });
}

TEST(session_errors_of_the_handler) {
    Ready& s = shared();
    const auto unknown = thrown_by<UnknownCommand>([&] { s.fetch_response("dance"); });
    CHECK(std::string(unknown.what()).find("dance") != std::string::npos);
    const auto remote = thrown_by<RemoteError>([&] { s.fetch_response("fail on purpose"); });
    CHECK_EQUAL(remote.error_type, "ValueError");
    CHECK_EQUAL(remote.command, "fail");
    CHECK(remote.remote_traceback.find("on purpose") != std::string::npos);
    s.send_request("fail again");
    CHECK(!s.wait_until_ok());
    thrown_by<RemoteError>([&] { s.wait_for_response(); });
    CHECK_EQUAL(thrown_by<UnexpectedResponse>([&] { s.fetch_tensor("length abc"); }).result, "3");
    CHECK_EQUAL(thrown_by<RemoteError>([&] { s.fetch_tensor("echo nobody"); }).error_type, "MissingTag");
}

TEST(session_every_dtype_comes_back_bit_for_bit) {
    Ready& s = shared();
    for (const auto& each : detail::dtype_table) {
        for (const Shape& shape : {Shape(), Shape(5), Shape(2, 3), Shape(0, 3), Shape(1, 1, 1, 1, 1, 1, 2)}) {
            Tensor tensor = Tensor::empty(shape, each.dtype);
            for (std::size_t i = 0; i < tensor.nbytes(); ++i) {
                tensor.data<std::byte>()[i] = static_cast<std::byte>(each.dtype == DType::BOOL ? i & 1 : 255 - i * 7);
            }
            const Tensor back = s.calculate("echo", tensor);
            CHECK(back.dtype() == each.dtype && back.shape() == shape);
            CHECK(tensor.nbytes() == 0 || std::memcmp(back.data_ptr(), tensor.data_ptr(), tensor.nbytes()) == 0);
        }
    }
    const Tensor deep = Tensor::full(Shape(std::vector<std::int64_t>(16, 1)), 4.0f);
    CHECK_EQUAL(s.calculate("echo", deep).shape(), deep.shape());
}

TEST(session_tags) {
    Ready& s = shared();
    s.send_tensor(Tensor::full(Shape(4), 1.0f), "a");
    CHECK_EQUAL(s.fetch_response("is a 1"), "True");
    CHECK_EQUAL(s.fetch_response("is a 1"), "True");  // a tag keeps its tensor
    s.send_tensor(Tensor::full(Shape(4), 2.0f), "a");
    CHECK_EQUAL(s.fetch_response("is a 2"), "True");
    CHECK(all_equal(load_tsr(s.session_dir() + "/a.tsr"), 2));
    s.send_tensor(Tensor::full(Shape(2, 2), 3.0f), "b");
    CHECK(all_equal(s.fetch_tensor("echo b"), 3));
    s.drop_tensor("a");
    CHECK(!exists(s.session_dir() + "/a.tsr"));
    CHECK_EQUAL(thrown_by<MissingTag>([&] { s.drop_tensor("a"); }).tag, "a");
    thrown_by<RemoteError>([&] { s.fetch_tensor("echo a"); });
    thrown_by<BadTag>([&] { s.send_tensor(Tensor(), "../x"); });
    thrown_by<BadTag>([&] { s.send_tensor(Tensor(), "segment_0"); });
    s.drop_tensor("b");
}

TEST(session_several_tensors) {
    Ready& s = shared();
    const auto tensors = s.fetch_tensors("count 3");
    CHECK_EQUAL(tensors.size(), 3u);
    CHECK(all_equal(tensors[2], 2));
    thrown_by<UnexpectedResponse>([&] { s.fetch_tensor("count 2"); });
    CHECK(all_equal(s.wait_for_tensors().at(1), 1));  // they were kept
    CHECK_EQUAL(s.calculate("echo", std::vector<Tensor>{tensors[1]}).data<float>()[0], 1.0f);
}

TEST(session_results_stay_as_they_were) {
    Ready& s = shared();
    std::vector<Tensor> results;
    for (int i = 0; i < 60; ++i) {
        results.push_back(s.calculate("echo", Tensor::full(Shape(1000), static_cast<float>(i))));
        if (i % 3 == 2) results.erase(results.end() - 2);
        for (std::size_t each = 0; each < results.size(); ++each) {
            CHECK(all_equal(results[each], results[each].data<float>()[0]));
        }
    }
    CHECK_EQUAL(results.back().data<float>()[0], 59.0f);
    CHECK(!results.back().is_writable());
    thrown_by<ReadOnlyTensor>([&] { results.back().fill(0); });
}

TEST(session_many_small_results_share_mappings) {
    const auto count_mappings = [] {
        std::ifstream file("/proc/self/maps");
        std::size_t count = 0;
        for (std::string line; std::getline(file, line);) ++count;
        return count;
    };
    Ready s("slots");
    const std::size_t before = count_mappings();
    std::vector<Tensor> results;
    for (int i = 0; i < 400; ++i) results.push_back(s.calculate("echo", Tensor::full(Shape(9), static_cast<float>(i))));
    for (int i = 0; i < 400; ++i) CHECK(all_equal(results[static_cast<std::size_t>(i)], static_cast<float>(i)));
    CHECK(count_mappings() < before + 200);
    results.clear();
    for (int i = 0; i < 20; ++i) CHECK(all_equal(s.calculate("echo", Tensor::full(Shape(9), 1.0f)), 1));
}

TEST(session_a_store_into_a_result_ends_at_that_store) {
    const Tensor result = shared().calculate("echo", Tensor::full(Shape(4), 1.0f));
    const pid_t child = ::fork();
    if (child == 0) {
        ::signal(SIGSEGV, SIG_DFL);
        *const_cast<volatile float*>(result.data<float>()) = 2;
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK(all_equal(result, 1));
}

TEST(session_loans_are_not_copied) {
    Ready s("loans");
    for (int i = 0; i < 100; ++i) {
        Tensor loan = s.empty<float>(Shape(1000));
        loan.fill(i);
        s.send_tensor(loan, "x");
        CHECK_EQUAL(s.fetch_response("is x " + std::to_string(i)), "True");
    }
    PoolStats stats = s.stats();
    CHECK_EQUAL(stats.copied_nbytes, 0u);
    CHECK(stats.created <= 3);
    CHECK_EQUAL(stats.published, 100u);

    Tensor loan = s.empty<float>(Shape(2, 5));
    loan.fill(7);
    CHECK(loan.is_writable());
    float* before = loan.data<float>();
    s.send_tensor(loan, "x");
    CHECK(!loan.is_writable());
    thrown_by<ReadOnlyTensor>([&] { loan.fill(1); });
    CHECK(all_equal(loan, 7) && loan.data<float>() != before);
    s.send_tensor(loan, "y");  // again, under another tag: neither copied nor stamped
    CHECK_EQUAL(s.stats().published, 101u);
    CHECK_EQUAL(s.fetch_response("is y 7"), "True");
    s.send_tensor(loan.reshape(Shape(10)), "z");  // as something else: copied
    CHECK_EQUAL(s.stats().copied_nbytes, 40u);
    CHECK_EQUAL(s.fetch_tensor("echo z").shape(), Shape(10));

    CHECK(all_equal(s.calculate("lend", s.calculate("lend", loan)), 7));
    { const Tensor unsent = s.empty<float>(Shape(10)); }
    const std::uint64_t created = s.stats().created;
    { const Tensor again = s.empty<float>(Shape(10)); }
    CHECK_EQUAL(s.stats().created, created);
    CHECK_EQUAL(s.empty<double>(Shape(0, 3)).numel(), 0);
    Tensor kept = s.empty<float>(Shape(3));
    s.close();
    kept.fill(5);  // a loan outlives its session
    CHECK(all_equal(kept, 5) && all_equal(loan, 7));
    CHECK(all_equal(shared().calculate("echo", kept), 5));  // and is copied by another
}

TEST(session_leases_keep_segments_from_being_filled) {
    Ready s("leases");
    for (int i = 0; i < 8; ++i) {  // the worker keeps views of what we send
        const Tensor tensor = Tensor::full(Shape(1000), static_cast<float>(i));
        CHECK_EQUAL(s.calculate("echo", tensor).data<float>()[0], static_cast<float>(i));
        s.send_tensor(tensor, "t");
        CHECK_EQUAL(s.fetch_response("keep t"), "kept");
    }
    s.drop_tensor("t");
    CHECK_EQUAL(s.fetch_response("kept"), "0.0 1000.0 2000.0 3000.0 4000.0 5000.0 6000.0 7000.0");
    s.fetch_response("forget");
    const std::uint64_t created = s.stats().created;
    for (int i = 0; i < 20; ++i) {
        s.send_tensor(Tensor::full(Shape(1000), 1.0f), "t");
        s.fetch_response("is t 1");
    }
    CHECK_EQUAL(s.stats().created, created);  // and then they go round again
}

TEST(session_segments_with_a_guest_are_left_alone) {
    Ready s("guests");
    s.send_tensor(Tensor::full(Shape(100), 1.0f), "a");
    const Tensor guest = load_tsr(s.session_dir() + "/a.tsr");
    for (int i = 2; i < 10; ++i) {
        s.send_tensor(Tensor::full(Shape(100), static_cast<float>(i)), "a");
        CHECK_EQUAL(s.fetch_response("is a " + std::to_string(i)), "True");
    }
    CHECK(all_equal(guest, 1));
}

TEST(session_budget) {
    SessionOptions options;
    options.budget_nbytes = 1 << 20;
    Ready s("budget", options);
    s.send_tensor(Tensor::zeros(Shape(100'000)), "a");
    s.send_tensor(Tensor::zeros(Shape(100'000)), "b");
    const auto full = thrown_by<OutOfSpace>([&] { s.send_tensor(Tensor::zeros(Shape(200'000)), "a"); });
    CHECK(full.needed_nbytes >= 800'000);
    CHECK_EQUAL(s.fetch_response("is a 0"), "True");
    s.drop_tensor("a");
    s.drop_tensor("b");
    s.fetch_response("length a");
    s.send_tensor(Tensor::zeros(Shape(200'000)), "a");
    thrown_by<OutOfSpace>([] { shared().empty<float>(Shape(std::int64_t{1} << 50)); });
}

TEST(session_at_its_budget_waits_for_the_worker) {
    SessionOptions options;
    options.budget_nbytes = 600'000;
    options.block_ms = 5000;
    Ready s("blocks", options);
    s.send_tensor(Tensor::zeros(Shape(100'000)), "a");
    s.send_request("sleep 0.2");
    s.drop_tensor("a");  // which the request under way might read
    thrown_by<OutOfSpace>([&] {
        SessionOptions none;
        none.budget_nbytes = 0;
        Ready("no_budget", none).empty<float>(Shape(1));
    });
    s.wait_for_response();
    CHECK_EQUAL(s.calculate("lend", Tensor::zeros(Shape(100'000))).numel(), 100'000);
}

TEST(session_wait_for_room_ends_with_the_worker_and_with_close) {
    const auto error_of = [](auto end, auto action) -> std::string {
        SessionOptions options;
        options.budget_nbytes = 600'000;
        options.block_ms = 120'000;
        Ready s("no_room", options);
        s.send_tensor(Tensor::zeros(Shape(100'000)), "a");
        std::string name = "none";
        std::atomic<bool> has_begun{false};
        std::thread other([&] {
            has_begun = true;
            try {
                action(s);
            } catch (const SessionNotStarted&) {
                name = "SessionNotStarted";
            } catch (const WorkerDied&) {
                name = "WorkerDied";
            } catch (const OutOfSpace&) {
                name = "OutOfSpace";
            }
        });
        while (!has_begun) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(50));  // a wait that begins later ends in the same way
        end(s);
        other.join();
        return name;
    };
    const Tensor large = Tensor::zeros(Shape(100'000));
    const auto sends = [&](PythonSession& s) { s.send_tensor(large, "b"); };
    const auto takes = [](PythonSession& s) { s.empty<float>(Shape(100'000)); };
    const auto asks = [&](PythonSession& s) { s.calculate("echo", large, 120'000); };
    const auto close = [](PythonSession& s) { s.close(); };
    const auto kill = [](PythonSession& s) {
        ::kill(static_cast<pid_t>(detail::read_manifest(s.session_dir())->worker->pid), SIGKILL);
    };
    CHECK_EQUAL(error_of(close, sends), "SessionNotStarted");
    CHECK_EQUAL(error_of(close, takes), "SessionNotStarted");
    CHECK_EQUAL(error_of(close, asks), "SessionNotStarted");
    CHECK_EQUAL(error_of(kill, sends), "WorkerDied");
    CHECK_EQUAL(error_of(kill, takes), "WorkerDied");
    CHECK_EQUAL(error_of(kill, asks), "WorkerDied");
    CHECK_EQUAL(error_of([](PythonSession& s) { s.terminate(); }, sends), "WorkerDied");
}

TEST(session_checksums) {
    SessionOptions options;
    options.has_checksum = true;
    Ready s("checksums", options);
    CHECK(all_equal(s.calculate("echo", Tensor::full(Shape(100), 2.0f)), 2));
    Tensor loan = s.empty<float>(Shape(100));
    loan.fill(1);
    s.send_tensor(loan, "a");
    CHECK_EQUAL(s.fetch_response("is a 1"), "True");
    CHECK(read_header(s.session_dir() + "/a.tsr").payload_checksum.has_value());
}

TEST(session_threads_share_it) {
    Ready& s = shared();
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (int thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&, thread] {
            for (int i = 0; i < 30; ++i) {
                const float value = static_cast<float>(thread * 100 + i);
                if (!all_equal(s.calculate("echo", Tensor::full(Shape(100), value)), value)) ++wrong;
            }
        });
    }
    for (std::thread& each : threads) each.join();
    CHECK_EQUAL(wrong.load(), 0);
    std::thread asker([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        s.send_request("length abc");
    });
    CHECK_EQUAL(s.wait_for_response(), "3");  // waits for the request too
    asker.join();
}

TEST(session_output_is_shown_unless_quiet) {
    const std::string path = std::string(std::getenv("TR_TEST_FOLDER")) + "/stderr";
    const int before = ::dup(2);
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    ::dup2(file, 2);
    {
        PythonSession s(worker_script(), "output", false);
        s.start();
        s.wait_until_ready(30000);
        s.fetch_response("say hello there");
        s.set_quiet_mode(true);
        s.fetch_response("say a secret");
    }
    ::dup2(before, 2);
    ::close(before);
    ::close(file);
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    CHECK(text.str().find("hello there") != std::string::npos);
    CHECK(text.str().find("secret") == std::string::npos);
}

TEST(session_memory_grows_no_more_after_a_while) {
    Ready& s = shared();
    for (int i = 0; i < 300; ++i) {
        const auto n = 1000 + i % 7 * 1000;
        CHECK_EQUAL(s.calculate("lend", Tensor::full(Shape(n), 1.0f)).numel(), n);
    }
    CHECK(s.stats().created < 200);
    CHECK_EQUAL(s.stats().free_nbytes, s.stats().nbytes);
}
