// Tests of what a session's worker gets from its controller's process, and of what it must not get; and of limits.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "session.hpp"

namespace {

std::string test_folder() { return std::getenv("TR_TEST_FOLDER"); }

}  // namespace

TEST(session_options_of_the_worker_s_process) {
    const std::string place = test_folder() + "/place";
    std::filesystem::create_directory(place);
    std::filesystem::current_path(test_folder());
    std::filesystem::copy_file(worker_script(), test_folder() + "/relative.py");
    ::setenv("TR_TEST_GONE", "here", 1);
    SessionOptions options;
    options.args = {"one", "two words"};
    options.env = {{"TR_TEST_GONE", std::nullopt}, {"TR_TEST_NEW", "new"}};
    options.cwd = "place";
    PythonSession s(std::filesystem::path("relative.py"), "options", true, options);
    std::filesystem::current_path("/");  // the paths were resolved before
    s.start();
    CHECK(s.wait_until_ready(30000));
    CHECK_EQUAL(s.fetch_response("look TR_TEST_NEW TR_TEST_GONE"), "['one', 'two words'] " + place + " new None");
    options.cwd = "/no/such/place";
    thrown_by<ScriptNotFound>([&] { PythonSession(worker_script(), "options2", true, options).start(); });
    options.cwd.clear();
    options.env = {{"A=B", "x"}};
    thrown_by<BadMessage>([&] { PythonSession(worker_script(), "options2", true, options).start(); });
    options.env.clear();
    options.python = "no-such-python";
    const auto missing = thrown_by<ScriptNotFound>([&] { PythonSession(worker_script(), "options2", true, options).start(); });
    CHECK(std::string(missing.what()).find("SessionOptions::python") != std::string::npos);
    CHECK(std::string(missing.what()).find("TR_PYTHON") != std::string::npos);
}

TEST(session_paths_mean_what_they_mean_to_open) {
    const std::string place = test_folder() + "/releases";
    std::filesystem::create_directories(place + "/release/v1");
    std::filesystem::create_directory_symlink("release/v1", place + "/current");
    std::filesystem::create_directory(place + "/data");
    std::filesystem::create_directory(place + "/release/data");
    std::ofstream(place + "/release/python") << "#!/bin/sh\nexec " << std::getenv("TR_PYTHON") << " \"$@\"\n";
    CHECK(::chmod((place + "/release/python").c_str(), 0700) == 0);
    std::ofstream(place + "/worker.py") << "raise SystemExit('wrong')\n";
    std::filesystem::copy_file(worker_script(), place + "/release/worker.py");
    CHECK(holds_in_child([&] {
        std::filesystem::current_path(place);
        const std::string relative = "current/../";
        for (const std::string& before : {relative, "./" + relative + "./", place + "/" + relative}) {
            ::setenv("TR_WORKSPACE", (before + "ws/").c_str(), 1);
            SessionOptions options;
            options.cwd = before + "data";
            options.env = {{"TR_PYTHON", before + "python"}};
            PythonSession s(before + "worker.py", "dots", true, options);
            s.start();
            CHECK(s.wait_until_ready(30000));
            CHECK(s.fetch_response("look TR_PYTHON NONE").find(place + "/release/data") != std::string::npos);
            CHECK(std::filesystem::exists(place + "/release/ws"));
        }
        CHECK(!std::filesystem::exists(place + "/ws"));
    }));
}

TEST(session_relative_workspace_is_where_it_was_when_the_session_was_made) {
    const std::string place = test_folder() + "/moved";
    for (const char* name : {"/first", "/second"}) std::filesystem::create_directories(place + name);
    CHECK(holds_in_child([&] {
        std::filesystem::current_path(place + "/first");
        ::setenv("TR_WORKSPACE", "./ws", 1);
        PythonSession s("default", "moved", true);
        CHECK(!std::filesystem::exists(place + "/first/ws"));  // nothing is made before start()
        std::filesystem::current_path(place + "/second");
        const std::string wanted = place + "/first/ws/python_session/tr_session_moved";
        CHECK_EQUAL(s.session_dir(), wanted);
        for (int i = 0; i < 2; ++i) {
            s.start();
            CHECK(s.wait_until_ready(30000));
            CHECK_EQUAL(s.session_dir(), wanted);
            CHECK(std::filesystem::exists(wanted));
            s.close();
            ::setenv("TR_WORKSPACE", (place + "/second/ws").c_str(), 1);  // is that of sessions to come
        }
        CHECK(!std::filesystem::exists(place + "/second/ws"));
    }));
}

TEST(session_script_that_ends_in_a_slash_is_no_file) {
    for (const char* end : {"/", "/."}) {
        thrown_by<ScriptNotFound>([&] { PythonSession(worker_script() + end, "slash", true).start(); });
    }
}

TEST(session_arguments_that_are_too_long_are_a_limit) {
    for (const bool is_variable : {false, true}) {
        SessionOptions options;
        if (is_variable) options.env = {{"LONG", std::string(200'000, 'x')}};
        else options.args = {std::string(200'000, 'x')};
        const auto full = thrown_by<SystemLimit>([&] { PythonSession(worker_script(), "long", true, options).start(); });
        CHECK_EQUAL(full.code, E2BIG);
        CHECK_EQUAL(full.limit, "ARG_MAX");
        CHECK(std::string(full.what()).find("SessionOptions::args and env") != std::string::npos);
    }
}

TEST(session_from_a_directory_that_is_gone) {
    CHECK(holds_in_child([] {
        const std::string place = test_folder() + "/gone";
        std::filesystem::create_directory(place);
        std::filesystem::current_path(place);
        std::filesystem::remove(place);
        const auto lost = thrown_by<ScriptNotFound>([] { PythonSession("worker.py", "gone"); });
        CHECK(std::string(lost.what()).find("no current directory") != std::string::npos);
        ::setenv("TR_PYTHON", std::filesystem::path(std::getenv("TR_PYTHON")).c_str(), 1);
        PythonSession s("default", "gone", true);
        s.start();
        CHECK(s.wait_until_ready(30000));
        ::setenv("TR_WORKSPACE", "relative", 1);
        thrown_by<HostilePath>([] { PythonSession("default", "gone2").start(); });
    }));
}

TEST(session_of_the_default_worker_runs_no_code_of_the_directory_or_the_environment) {
    const std::string place = test_folder() + "/shadows";
    std::filesystem::create_directory(place);
    for (const char* name : {"numpy.py", "random.py", "tr_mmap.py", "sitecustomize.py"}) {
        std::ofstream(place + "/" + name) << "import os\nos._exit(77)\n";
    }
    CHECK(holds_in_child([&] {
        std::filesystem::current_path(place);
        const char* known = std::getenv("PYTHONPATH");
        ::setenv("PYTHONPATH", (place + ":" + (known ? known : "")).c_str(), 1);
        PythonSession s("default", "shadows", true);
        s.start();
        CHECK(s.wait_until_ready(30000));
        CHECK_EQUAL(s.fetch_response("hello there"), "Hello There");
    }));
}

TEST(session_of_the_default_worker_runs_by_its_own_standard_library) {
    const std::string place = test_folder() + "/homes";
    std::filesystem::create_directory(place);
    for (const char* name : {"encodings.py", "numpy.py", "start.py"}) {
        std::ofstream(place + "/" + name) << "import os\nos._exit(77)\n";
    }
    // Of the options: none of these decides it, and one that is none of them arrives.
    SessionOptions options;
    options.env = {{"PYTHONPATH", place}, {"PYTHONSTARTUP", place + "/start.py"}, {"PYTHONINSPECT", "1"}};
    {
        PythonSession s("default", "homes", true, options);
        s.start();
        CHECK(s.wait_until_ready(30000));
        CHECK_EQUAL(s.fetch_response("hello there"), "Hello There");
    }
    // Of this process: another interpreter's.
    const std::map<std::string, std::string> homes = {{"PYTHONHOME", place}, {"PYTHONPLATLIBDIR", "none"}};
    for (const auto& [name, value] : homes) {
        CHECK(holds_in_child([name = name, value = value, &place] {
            ::setenv(name.c_str(), value.c_str(), 1);
            ::setenv("PYTHONPATH", place.c_str(), 1);
            PythonSession s("default", "homes", true);
            s.start();
            CHECK(s.wait_until_ready(30000));
            CHECK_EQUAL(s.fetch_response("hello there"), "Hello There");
        }));
    }
    // A home that is given for this worker is the user's choice.
    options.env = {{"PYTHONHOME", place}};
    PythonSession chosen("default", "homes", true, options);
    chosen.start();
    thrown_by<WorkerDied>([&] { chosen.wait_until_ready(30000); });
}

TEST(session_of_a_script_has_the_pythonpath_of_the_options) {
    const std::string place = test_folder() + "/modules";
    std::filesystem::create_directory(place);
    std::ofstream(place + "/tr_test_module.py") << "print('this is the module', flush=True)\n";
    const std::string script = test_folder() + "/importing.py";
    std::ofstream(script) << "import tr_test_module\n";
    SessionOptions options;
    options.env = {{"PYTHONPATH", place}};
    PythonSession s(script, "modules", true, options);
    s.start();
    CHECK(thrown_by<WorkerDied>([&] { s.wait_until_ready(30000); }).log_tail == "this is the module");
}

TEST(session_worker_does_not_inherit_what_this_process_does_to_signals) {
    sigset_t all, previous;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &previous);
    ::signal(SIGALRM, SIG_IGN);
    ::signal(SIGUSR1, SIG_IGN);
    const auto hangup = ::signal(SIGHUP, SIG_IGN);
    ::setenv("TR_MMAP_LOCK_FD", "0", 1);  // of this process's own controller, if it were a worker
    Ready s("signals");
    ::unsetenv("TR_MMAP_LOCK_FD");
    ::signal(SIGALRM, SIG_DFL);
    ::signal(SIGUSR1, SIG_DFL);
    ::signal(SIGHUP, hangup);
    ::pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    CHECK_EQUAL(s.fetch_response("signals"), "[] [<Signals.SIGHUP: 1>]");  // nohup(1) is meant for the worker too
    CHECK_EQUAL(s.fetch_response("lifeline"), "True");  // what ends it if native code is stuck, and this process gone
}

TEST(session_of_a_process_without_standard_streams) {
    CHECK(holds_in_child([] {
        for (int fd = 0; fd < 3; ++fd) ::close(fd);
        Ready s("streams");
        CHECK_EQUAL(s.fetch_response("say words"), "said");
        std::ifstream log(s.session_dir() + "/worker.log");
        std::string line;
        CHECK(std::getline(log, line) && line == "words");
        CHECK_EQUAL(s.fetch_response("lifeline"), "True");
        CHECK(!detail::is_lock_free(s.session_dir() + "/worker.lock"));
    }));
}

TEST(session_processes_hold_a_lock_each_for_as_long_as_they_live) {
    Ready s("locks");
    const std::string ours = s.session_dir() + "/controller.lock", theirs = s.session_dir() + "/worker.lock";
    for (int start = 0; start < 2; ++start) {
        CHECK(!detail::is_lock_free(ours) && !detail::is_lock_free(theirs));
        const pid_t child = ::fork();  // it must hold neither
        if (child == 0) {
            ::alarm(100);  // should this test fail
            ::pause();
            ::_exit(0);
        }
        CHECK_EQUAL(s.fetch_response("look TR_MMAP_LOCK_FD TR_MMAP_LOCK_FD").find("None None") != std::string::npos, true);
        ::kill(std::stoi(s.fetch_response("pid")), SIGKILL);
        CHECK(s.join(30000));
        CHECK(detail::is_lock_free(theirs) && !detail::is_lock_free(ours));
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        s.start();
        CHECK(s.wait_until_ready(30000));
    }
}

TEST(session_whose_directory_was_removed_says_so_and_leaves_the_next_one_alone) {
    Ready s("removed");
    s.terminate();
    CHECK(s.join(30000));
    std::filesystem::remove_all(s.session_dir());
    const std::string text = thrown_by<SessionNotStarted>([&] { s.start(); }).what();
    CHECK(text.find("was removed") != std::string::npos);
    Ready next("removed");  // another session of this very process has the name now
    s.close();
    CHECK_EQUAL(next.fetch_response("length abc"), "3");
    CHECK(exists(next.session_dir()));
}

TEST(session_whose_directory_was_removed_while_it_lives_gets_nothing_of_the_next_one_and_gives_it_nothing) {
    Ready s("replaced");
    s.send_tensor(Tensor::full(Shape(5), 1.0f), "a");
    std::filesystem::remove_all(s.session_dir());
    Ready next("replaced");
    next.send_tensor(Tensor::full(Shape(5), 2.0f), "a");
    const std::string tag_file = next.session_dir() + "/a.tsr";
    const auto before = std::filesystem::last_write_time(tag_file);
    const std::string remote = thrown_by<RemoteError>([&] { s.fetch_tensor("echo a"); }).what();
    CHECK(remote.find("was removed or replaced") != std::string::npos);
    for (int number = 0; number < 3; ++number) {
        const Tensor large = Tensor::full(Shape(2000 * (number + 1)), 3.0f);
        CHECK(std::string(thrown_by<SessionNotStarted>([&] { s.send_tensor(large, "a"); }).what()).find("close()") !=
              std::string::npos);
        thrown_by<SessionNotStarted>([&] { s.fetch_response("length " + std::string(100'000, 'x')); });
    }
    CHECK_EQUAL(s.fetch_response("length abc"), "3");  // the pages are mapped
    CHECK(s.please_exit(30000));
    s.close();
    CHECK(std::filesystem::last_write_time(tag_file) == before);
    CHECK(all_equal(next.fetch_tensor("echo a"), 2.0f));
    CHECK_EQUAL(next.fetch_response("length abc"), "3");
}

TEST(session_without_its_lock_file_is_removed_when_it_ends) {
    for (int way = 0; way < 5; ++way) {
        Ready s("unlocked");
        const std::string lock = s.session_dir() + "/controller.lock";
        std::filesystem::remove(lock);
        if (way == 1) std::filesystem::create_directory(lock);
        if (way == 2) std::filesystem::create_symlink("elsewhere", lock);
        if (way == 3) std::ofstream{lock};
        if (way == 4) std::filesystem::remove(s.session_dir() + "/session.json");
        s.terminate();
        CHECK(s.join(30000));
        if (way == 0) {  // another worker can be started in it
            s.start();
            CHECK(s.wait_until_ready(30000));
        }
        s.close();
        CHECK(!exists(s.session_dir()));
    }
}

TEST(session_directory_in_which_another_one_has_its_lock_or_manifest_stays) {
    for (const bool has_lock : {false, true}) {  // as if the file system had given it the same inode
        Ready s("taken");
        s.terminate();
        CHECK(s.join(30000));
        for (const auto& entry : std::filesystem::directory_iterator(s.session_dir())) {
            std::filesystem::remove(entry.path());
        }
        detail::LifeLock other;
        detail::Manifest manifest;
        manifest.session_id = "taken";
        manifest.controller = detail::Identity::local(1, 1);
        if (has_lock) other.take(s.session_dir() + "/controller.lock");
        else detail::write_manifest(s.session_dir(), manifest);
        s.close();
        CHECK(exists(s.session_dir()));
        std::filesystem::remove_all(s.session_dir());
    }
}

TEST(session_log_takes_no_shared_memory) {
    CHECK(holds_in_child([] {
        const std::string place = test_folder() + "/logs";
        std::filesystem::create_directory(place);
        ::setenv("TMPDIR", place.c_str(), 1);
        Ready s("log");
        const std::string link = s.session_dir() + "/worker.log";
        struct stat ours = {}, theirs = {};
        CHECK(::stat(s.session_dir().c_str(), &ours) == 0 && ::stat(place.c_str(), &theirs) == 0);
        if (!detail::is_on_tmpfs(s.session_dir()) || ours.st_dev == theirs.st_dev) {  // TR_WORKSPACE is elsewhere
            CHECK(!std::filesystem::is_symlink(link));
            return;
        }
        std::string before;
        for (int start = 0; start < 2; ++start) {
            const std::string log = std::filesystem::read_symlink(link).string();
            CHECK_EQUAL(log.substr(0, place.size() + 13), place + "/tr_mmap-log-");
            CHECK_EQUAL(log.size(), place.size() + 13 + 32);
            CHECK_EQUAL(detail::read_manifest(s.session_dir())->log, log);
            CHECK(::stat(log.c_str(), &theirs) == 0 && (theirs.st_mode & 07777) == 0600);
            CHECK(log != before && !exists(before));
            before = log;
            CHECK(thrown_by<WorkerDied>([&] { s.fetch_response("die 3"); }).log_tail.find("my last words") !=
                  std::string::npos);
            s.start();
            CHECK(s.wait_until_ready(30000));
        }
        s.close();
        CHECK(std::filesystem::is_empty(place));
        // Where temporary files are in shared memory too, nothing is gained.
        ::setenv("TMPDIR", detail::Workspace::locate().root().c_str(), 1);
        Ready second("log");
        CHECK(!std::filesystem::is_symlink(link) && exists(link));
        CHECK_EQUAL(detail::read_manifest(second.session_dir())->log, "");
    }));
}

TEST(session_closes_while_nobody_reads_what_its_worker_prints) {
    CHECK(holds_in_child([] {
        int ends[2];
        CHECK(::pipe(ends) == 0 && ::dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
        const auto is_full = [&] {
            struct pollfd wanted = {ends[1], POLLOUT, 0};
            return ::poll(&wanted, 1, 0) == 0;
        };
        PythonSession s(worker_script(), "unread", false);
        s.start();
        CHECK(s.wait_until_ready(30000));
        s.fetch_response("say " + std::string(200'000, 'x'));  // more than a pipe holds
        while (!is_full()) std::this_thread::yield();
        s.set_quiet_mode(true);
        s.set_quiet_mode(false);
        s.fetch_response("say more");
        s.close();
        CHECK(is_full());  // what was read to here is what it was
    }));
}

TEST(session_removed_with_the_log_that_its_manifest_names_and_no_other_file) {
    const std::string log = test_folder() + "/tr_mmap-log-" + std::string(32, 'a');
    const std::string other = test_folder() + "/diary";
    const std::string hidden = test_folder() + "/tr_mmap-log-" + std::string(32, 'b');
    for (const std::string& each : {log, other}) std::ofstream(each) << "text";
    CHECK(::symlink(other.c_str(), hidden.c_str()) == 0);
    for (const std::string& each : {log, other, hidden, "../" + log, log + "c"}) detail::remove_log(each);
    CHECK(!exists(log) && exists(other) && std::filesystem::is_symlink(hidden));
}

TEST(session_at_the_limit_of_open_files_is_usable_again_after_it) {
    CHECK(holds_in_child([] {
        Ready s("files");
        struct rlimit limit = {64, 64};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = 64;
        CHECK(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
        std::vector<int> files;
        for (int fd = 0; (fd = ::dup(0)) >= 0;) files.push_back(fd);
        const auto full = thrown_by<SystemLimit>([&] { s.empty<float>(Shape(1000)); });
        CHECK_EQUAL(full.limit, "RLIMIT_NOFILE");
        CHECK_EQUAL(full.code, EMFILE);
        s.send_request("count 2");
        s.send_request("length abc");
        thrown_by<SystemLimit>([&] { s.wait_for_tensors(); });
        thrown_by<SystemLimit>([&] { s.wait_for_tensors(); });
        auto late = s.submit_tensors("count 2", 300);
        thrown_by<SystemLimit>([&] { late.get(); });
        auto kept = s.submit_tensors("count 3", 60'000);
        CHECK_EQUAL(s.fetch_response("length abcd"), "4");  // what needs no descriptor goes on
        thrown_by<SystemLimit>([&] { PythonSession("default", "files2").start(); });
        CHECK(kept.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
        CHECK(!kept.cancel());  // it was answered
        for (const int fd : files) ::close(fd);
        CHECK(all_equal(s.wait_for_tensors().at(1), 1));  // and is not lost
        CHECK(all_equal(kept.get().at(2), 2));            // the same of a future
        CHECK_EQUAL(s.wait_for_response(), "3");
        files.clear();
        for (int fd = 0; (fd = ::dup(0)) >= 0;) files.push_back(fd);
        thrown_by<SystemLimit>([&] { s.fetch_tensors("count 40"); });  // the same of a call
        for (const int fd : files) ::close(fd);
        CHECK(all_equal(s.wait_for_tensors().at(39), 39));
        CHECK_EQUAL(s.fetch_response("length abc"), "3");
        CHECK_EQUAL(s.empty<float>(Shape(1000)).numel(), 1000);
    }));
}

TEST(session_started_with_few_descriptors_works_or_says_so) {
    CHECK(holds_in_child([] {
        struct rlimit limit = {};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = 64;
        CHECK(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
        int started = 0;
        for (std::size_t spare = 0; spare <= 24 && started < 3; ++spare) {
            std::vector<int> files;
            for (int fd = 0; (fd = ::dup(0)) >= 0;) files.push_back(fd);
            for (std::size_t i = 0; i < spare; ++i) {
                ::close(files.back());
                files.pop_back();
            }
            PythonSession s(worker_script(), "spare" + std::to_string(spare), true);
            bool is_started = false;
            try {
                s.start();
                is_started = true;
            } catch (const SystemLimit& error) {
                CHECK_EQUAL(error.limit, "RLIMIT_NOFILE");
                CHECK(!s.is_alive());
                CHECK(::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD);  // no worker is left
            }
            for (const int fd : files) ::close(fd);
            if (is_started) {
                ++started;
                CHECK_EQUAL(s.fetch_response("length abc", 30000), "3");
            }
            s.close();
            CHECK(!exists(s.session_dir()));
        }
        CHECK_EQUAL(started, 3);
    }));
}

TEST(session_whose_start_lacks_descriptors_leaves_its_name_free) {
    CHECK(holds_in_child([] {
        struct rlimit limit = {};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = 64;
        CHECK(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
        bool has_started = false;
        for (std::size_t spare = 0; spare <= 24 && !has_started; ++spare) {
            std::vector<int> files;
            for (int fd = 0; (fd = ::dup(0)) >= 0;) files.push_back(fd);
            for (std::size_t i = 0; i < spare; ++i) {
                ::close(files.back());
                files.pop_back();
            }
            std::string directory;
            {
                PythonSession s(worker_script(), "free" + std::to_string(spare), true);
                directory = s.session_dir();
                try {
                    s.start();
                    has_started = true;
                } catch (const SystemLimit&) {
                    CHECK(!s.is_alive());
                }
            }  // the object ends while the descriptors are lacking still
            for (const int fd : files) ::close(fd);
            CHECK(!exists(directory));
        }
        CHECK(has_started);
    }));
}

TEST(session_processes_are_not_misjudged_where_no_descriptor_is_left) {
    CHECK(holds_in_child([] {
        const pid_t sleeper = ::fork();
        if (sleeper == 0) {
            ::alarm(100);  // should this test fail
            ::pause();
            ::_exit(0);
        }
        const detail::Identity before = detail::Identity::of(sleeper);
        struct rlimit limit = {};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = 64;
        CHECK(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
        std::vector<int> files;
        for (int fd = 0; (fd = ::dup(0)) >= 0;) files.push_back(fd);
        CHECK_EQUAL(thrown_by<SystemLimit>([&] { detail::Identity::of(sleeper); }).code, EMFILE);
        CHECK(before.is_alive());
        const detail::Identity own = detail::Identity::local(::getpid(), 0);
        CHECK(own.is_alive());
        ::kill(sleeper, SIGKILL);
        CHECK(detail::wait_for_ends({before}, detail::deadline_in(30'000)));  // it is not even reaped
        for (const int fd : files) ::close(fd);
        ::waitpid(sleeper, nullptr, 0);
        const detail::Identity mine = detail::Identity::current();
        CHECK(mine == detail::Identity::of(::getpid()));
        CHECK(holds_in_child([&] { CHECK(detail::Identity::current() == detail::Identity::of(::getpid())); }));
    }));
}

TEST(session_at_the_limit_of_a_file_s_size_is_usable_after_it) {
    CHECK(holds_in_child([] {
        Ready s("sizes");
        struct rlimit limit = {};
        ::getrlimit(RLIMIT_FSIZE, &limit);
        limit.rlim_cur = 1 << 20;
        CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);  // by default SIGXFSZ would end this process
        const auto full = thrown_by<SystemLimit>([&] { s.send_tensor(Tensor::ones(Shape(1 << 20)), "a"); });
        CHECK_EQUAL(full.limit, "RLIMIT_FSIZE");
        thrown_by<SystemLimit>([&] { s.empty<float>(Shape(1 << 20)); });
        const std::string large = test_folder() + "/large.tsr";
        const auto refused = thrown_by<SystemLimit>([&] { save_tsr(large, Tensor::ones(Shape(1 << 20))); });
        CHECK(std::string(refused.what()).find(large + ": a file of ") != std::string::npos);
        CHECK(!exists(test_folder() + "/large.tsr"));
        s.send_tensor(Tensor::ones(Shape(1000)), "a");
        CHECK_EQUAL(s.fetch_response("is a 1"), "True");
    }));
}

TEST(session_at_the_limit_of_mappings_loses_no_answer) {
    const std::size_t most = std::strtoull(detail::read_proc("/proc/sys/vm/max_map_count").c_str(), nullptr, 10);
    if (most > 200'000) return;  // it would take long
    const auto loses_nothing = [most] {
        Ready s("maps");
        s.send_request("count 40");
        const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        void* place = ::mmap(nullptr, 2 * most * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(place != MAP_FAILED);
        char* area = static_cast<char*>(place);
        std::size_t count = 0;  // every second page is a mapping of its own
        while (count < most && ::mprotect(area + 2 * count * page, page, PROT_READ) == 0) ++count;
        for (int left = 0; left < 10; ++left) ::mprotect(area + 2 * --count * page, page, PROT_NONE);
        const auto full = thrown_by<SystemLimit>([&] { s.wait_for_tensors(); });
        CHECK_EQUAL(full.limit, "vm.max_map_count");
        CHECK_EQUAL(full.code, ENOMEM);
        CHECK(::munmap(area, 2 * most * page) == 0);
        CHECK(all_equal(s.wait_for_tensors().at(39), 39));
    };
    // The sanitizer's allocator ends the process where it needs a mapping just there: then once more.
    bool holds = false;
    for (int tries = 0; tries < 4 && !holds; ++tries) holds = holds_in_child(loses_nothing);
    CHECK(holds);
}
