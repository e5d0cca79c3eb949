/* The few kernel types that trace.bpf.c reads, with the fields it reads; CO-RE finds where they are in the running kernel. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;
typedef u8 __u8;
typedef u16 __u16;
typedef s32 __s32;
typedef u32 __u32;
typedef s64 __s64;
typedef u64 __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	u32 s_dev;
};

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
};

struct address_space {
	struct inode *host;
};

struct folio {
	unsigned long flags;
	struct address_space *mapping;
	unsigned long index;
	u32 _nr_pages;
};

struct folio___6_18 {
	struct {
		unsigned long f;
	} flags;
};

struct task_struct {
	s32 pid;
	s32 tgid;
	char comm[16];
};

struct fuse_in_header {
	u32 opcode;
	u64 unique;
	u64 nodeid;
	u32 pid;
};

struct fuse_out_header {
	s32 error;
};

struct fuse_conn {
	u32 dev;
};

struct fuse_mount {
	struct fuse_conn *fc;
};

struct fuse_in_arg {
	u32 size;
	const void *value;
};

struct fuse_args {
	struct fuse_in_arg in_args[3];
};

struct fuse_req {
	struct fuse_args *args;
	struct {
		struct fuse_in_header h;
	} in;
	struct {
		struct fuse_out_header h;
	} out;
	struct fuse_mount *fm;
};

#pragma clang attribute pop

/* What the kernel says to user space (include/uapi/linux/fuse.h): it does not change. */
struct fuse_read_in {
	u64 fh;
	u64 offset;
	u32 size;
};
